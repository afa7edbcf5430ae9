// Shared by all kernels: the argument block, the sweep over arrays of any alignment, and block sums.
// Nothing is included, so that NVRTC needs no headers.

typedef long long i64;
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;

#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

#define MOST_ARRAYS 8
#define MOST_RUNS 16
#define MOST_GROUPS 4

// Mirrors structs.Args field by field.
struct Args {
    const float* in[MOST_ARRAYS];
    void* out[2];
    double* partials;  // sums per block
    double* totals;    // sums of all blocks
    u32* counters;     // blocks of a row that are done; zero before and after every launch
    float* factors;    // multiplier per group
    i64 count;        // numbers per array
    i64 start[MOST_RUNS];
    i64 stop[MOST_RUNS];
    float weight[MOST_ARRAYS];
    float scale;
    u32 key;
    int runs;
    int group[MOST_RUNS];
};

__device__ __forceinline__ int phase(const void* pointer) { return (int)(((u64)pointer >> 2) & 3); }

// Calls f(x, y) for every place: x holds R numbers read, y takes W numbers to write. Arrays that share their
// alignment are read by 16 bytes, with single numbers before and after; others number by number. U vectors
// per array are in flight per thread. f.flush() follows every few numbers.
template <int R, int W, int U, class F>
__device__ __forceinline__ void sweep(const float* const* in, float* const* out, i64 n, F& f) {
    constexpr int W1 = W > 0 ? W : 1;
    const i64 thread = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    const i64 threads = (i64)gridDim.x * blockDim.x;
    const float* src[R];
    float* dst[W1];
    bool alike = true;
#pragma unroll
    for (int r = 0; r < R; ++r) {
        src[r] = in[r];
        alike = alike && phase(src[r]) == phase(src[0]);
    }
#pragma unroll
    for (int w = 0; w < W; ++w) {
        dst[w] = out[w];
        alike = alike && phase(dst[w]) == phase(src[0]);
    }
    float x[R];
    float y[W1];
    i64 first = 0, last = 0;  // the stretch done by vectors
    if (alike) {
        const i64 head = (4 - phase(src[0])) & 3;
        const i64 vectors = n > head ? (n - head) / 4 : 0;
        first = vectors ? head : 0;
        last = first + 4 * vectors;
        for (i64 v = thread; v < vectors; v += threads * U) {
            float4 data[U][R];
#pragma unroll
            for (int u = 0; u < U; ++u) {
                const i64 at = v + u * threads;
                if (at < vectors) {
#pragma unroll
                    for (int r = 0; r < R; ++r) data[u][r] = __ldg((const float4*)(src[r] + first) + at);
                }
            }
#pragma unroll
            for (int u = 0; u < U; ++u) {
                const i64 at = v + u * threads;
                if (at < vectors) {
                    float4 made[W1];
#pragma unroll
                    for (int lane = 0; lane < 4; ++lane) {
#pragma unroll
                        for (int r = 0; r < R; ++r) x[r] = ((const float*)&data[u][r])[lane];
                        f(x, y);
#pragma unroll
                        for (int w = 0; w < W; ++w) ((float*)&made[w])[lane] = y[w];
                    }
#pragma unroll
                    for (int w = 0; w < W; ++w) ((float4*)(dst[w] + first))[at] = made[w];
                    f.flush();
                }
            }
        }
    }
    // What vectors left: everything, or the few numbers before and after them.
    const i64 left = n - (last - first);
    for (i64 k = thread; k < left; k += threads) {
        const i64 at = k < first ? k : k + (last - first);
#pragma unroll
        for (int r = 0; r < R; ++r) x[r] = __ldg(src[r] + at);
        f(x, y);
#pragma unroll
        for (int w = 0; w < W; ++w) dst[w][at] = y[w];
        f.flush();
    }
}

// Q sums per thread: products are added in float32 over at most four numbers, then in float64.
template <int Q>
struct Sums {
    float part[Q];
    double total[Q];
    __device__ __forceinline__ Sums() {
#pragma unroll
        for (int q = 0; q < Q; ++q) {
            part[q] = 0.0f;
            total[q] = 0.0;
        }
    }
    __device__ __forceinline__ void flush() {
#pragma unroll
        for (int q = 0; q < Q; ++q) {
            total[q] += (double)part[q];
            part[q] = 0.0f;
        }
    }
};

// Sums over the block, in a fixed order, to to[q * stride].
template <int Q>
__device__ __forceinline__ void block_sums(const double* total, double* to, i64 stride) {
    __shared__ double slots[Q][32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
#pragma unroll
    for (int q = 0; q < Q; ++q) {
        double value = total[q];
#pragma unroll
        for (int offset = 16; offset > 0; offset >>= 1) value += __shfl_down_sync(0xffffffffu, value, offset);
        if (lane == 0) slots[q][warp] = value;
    }
    __syncthreads();
    for (int q = threadIdx.x; q < Q; q += blockDim.x) {
        double sum = 0.0;
        for (int w = 0; w < warps; ++w) sum += slots[q][w];
        to[q * stride] = sum;
    }
}

// Sums over the grid to a.totals[row * Q + q]: the block of a row that comes last adds up what all blocks of
// the row have left, in the order of blocks, so that the same numbers give the same bits.
template <int Q>
__device__ __forceinline__ void grid_sums(double* total, const Args& a, int row) {
    __shared__ bool last;
    double* const partials = a.partials + (i64)row * Q * gridDim.x;
    block_sums<Q>(total, partials + blockIdx.x, gridDim.x);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicInc(a.counters + row, gridDim.x - 1) == gridDim.x - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
#pragma unroll
    for (int q = 0; q < Q; ++q) {
        const volatile double* left = partials + (i64)q * gridDim.x;
        total[q] = 0.0;
        for (int b = threadIdx.x; b < gridDim.x; b += blockDim.x) total[q] += left[b];
    }
    block_sums<Q>(total, a.totals + (i64)row * Q, 1);
}
