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

// Mirrors structs.Args field by field.
struct Args {
    const float* in[MOST_ARRAYS];
    void* out[2];
    double* partials;  // sums of each block, one block after the other
    i64 count;         // numbers per array
    i64 start[MOST_RUNS];
    i64 stop[MOST_RUNS];
    float weight[MOST_ARRAYS];
    float scale;
    u32 key;
    int runs;
    int source[MOST_RUNS];     // array that a run lies in
    int first[MOST_RUNS + 1];  // block that begins with a run
};

// Which of the blocks that share a stretch this one is.
struct Part {
    i64 block, blocks;
};

__device__ __forceinline__ Part whole_grid() { return {(i64)blockIdx.x, (i64)gridDim.x}; }

__device__ __forceinline__ int phase(const void* pointer) { return (int)(((u64)pointer >> 2) & 3); }

// Reads and writes that the L2 cache need not keep: what streams through is larger than the cache.
template <class T>
__device__ __forceinline__ T fetch(const T* at) {
    return __ldcs(at);
}

template <class T>
__device__ __forceinline__ void store(T* at, T value) {
    __stcs(at, value);
}

// Calls f(x, y) for every place: x holds R numbers read, y takes W numbers to write. Arrays that share their
// alignment are read by 16 bytes, with single numbers before and after; others number by number. Blocks take
// tiles of U vectors per thread in turn; U vectors per array are in flight per thread. f.flush() follows
// every few numbers.
template <int R, int W, int U, class F>
__device__ __forceinline__ void sweep(const float* const* in, float* const* out, i64 n, Part part, F& f) {
    constexpr int W1 = W > 0 ? W : 1;
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
        const i64 tile = (i64)blockDim.x * U;
        for (i64 v = part.block * tile + threadIdx.x; v < vectors; v += part.blocks * tile) {
            float4 data[U][R];
#pragma unroll
            for (int u = 0; u < U; ++u) {
                const i64 at = v + u * blockDim.x;
                if (at < vectors) {
#pragma unroll
                    for (int r = 0; r < R; ++r) data[u][r] = fetch((const float4*)(src[r] + first) + at);
                }
            }
#pragma unroll
            for (int u = 0; u < U; ++u) {
                const i64 at = v + u * blockDim.x;
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
                    for (int w = 0; w < W; ++w) store((float4*)(dst[w] + first) + at, made[w]);
                    f.flush();
                }
            }
        }
    }
    // What vectors left: everything, or the few numbers before and after them.
    const i64 left = n - (last - first);
    for (i64 k = part.block * blockDim.x + threadIdx.x; k < left; k += part.blocks * blockDim.x) {
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

// Sums over the block, in a fixed order, to to[q]. Nothing adds up the blocks here: the host does, which has
// to wait for the numbers anyway. Counting blocks to find the last one costs a streaming kernel a tenth to a
// third of its time at 10 M numbers.
template <int Q>
__device__ __forceinline__ void block_sums(const double* total, double* to) {
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
        to[q] = sum;
    }
}
