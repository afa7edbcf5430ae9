// Algebra on K snapshots, K <= MOST_ARRAYS given at compile time.

struct Gram : Sums<K * (K + 1) / 2> {
    __device__ __forceinline__ void operator()(const float* x, float*) {
#pragma unroll
        for (int i = 0, q = 0; i < K; ++i) {
#pragma unroll
            for (int j = 0; j <= i; ++j, ++q) this->part[q] = fmaf(x[i], x[j], this->part[q]);
        }
    }
};

// Lower triangle of the inner products, row by row.
extern "C" __global__ void gram(Args a) {
    Gram f;
    sweep<K, 0, (K < 2 ? 2 : 1)>(a.in, (float* const*)a.out, a.count, whole_grid(), f);
    block_sums<K*(K + 1) / 2>(f.total, a.partials + (i64)blockIdx.x * (K * (K + 1) / 2));
}

struct Combine {
    float weight[K];
    __device__ __forceinline__ void operator()(const float* x, float* y) {
        y[0] = x[0] * weight[0];
#pragma unroll
        for (int k = 1; k < K; ++k) y[0] = fmaf(x[k], weight[k], y[0]);
    }
    __device__ __forceinline__ void flush() {}
};

extern "C" __global__ void combine(Args a) {
    Combine f;
#pragma unroll
    for (int k = 0; k < K; ++k) f.weight[k] = a.weight[k];
    sweep<K, 1, 1>(a.in, (float* const*)a.out, a.count, whole_grid(), f);
}
