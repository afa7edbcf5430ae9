// One pass over one to three arrays: inner products, window means, displacements, norms.

struct Products : Sums<3> {
    __device__ __forceinline__ void operator()(const float* x, float*) {
        part[0] = fmaf(x[0], x[0], part[0]);
        part[1] = fmaf(x[1], x[1], part[1]);
        part[2] = fmaf(x[0], x[1], part[2]);
    }
};

extern "C" __global__ void products(Args a) {
    Products f;
    sweep<2, 0, 1>(a.in, (float* const*)a.out, a.count, whole_grid(), f);
    block_sums<3>(f.total, a.partials + 3 * (i64)blockIdx.x);
}

struct Distance : Sums<1> {
    __device__ __forceinline__ void operator()(const float* x, float*) {
        const float gap = x[0] - x[1];
        part[0] = fmaf(gap, gap, part[0]);
    }
};

extern "C" __global__ void distance2(Args a) {
    Distance f;
    sweep<2, 0, 1>(a.in, (float* const*)a.out, a.count, whole_grid(), f);
    block_sums<1>(f.total, a.partials + 1 * (i64)blockIdx.x);
}

struct Mean {
    float scale;
    __device__ __forceinline__ void operator()(const float* x, float* y) { y[0] = x[0] * scale; }
    __device__ __forceinline__ void flush() {}
};

extern "C" __global__ void window_mean(Args a) {
    Mean f = {a.scale};
    sweep<1, 1, 1>(a.in, (float* const*)a.out, a.count, whole_grid(), f);
}

struct MeanAndStep {
    float scale;
    __device__ __forceinline__ void operator()(const float* x, float* y) {
        y[0] = __fmul_rn(x[0], scale);
        y[1] = y[0] - x[1];
    }
    __device__ __forceinline__ void flush() {}
};

extern "C" __global__ void window_step(Args a) {
    MeanAndStep f = {a.scale};
    sweep<2, 2, 1>(a.in, (float* const*)a.out, a.count, whole_grid(), f);
}

struct Difference {
    __device__ __forceinline__ void operator()(const float* x, float* y) { y[0] = x[0] - x[1]; }
    __device__ __forceinline__ void flush() {}
};

extern "C" __global__ void difference(Args a) {
    Difference f;
    sweep<2, 1, 1>(a.in, (float* const*)a.out, a.count, whole_grid(), f);
}

struct Turn : Sums<3> {
    __device__ __forceinline__ void operator()(const float* x, float* y) {
        y[0] = x[0] - x[1];
        part[0] = fmaf(y[0], y[0], part[0]);
        part[1] = fmaf(x[2], x[2], part[1]);
        part[2] = fmaf(y[0], x[2], part[2]);
    }
};

extern "C" __global__ void turn(Args a) {
    Turn f;
    sweep<3, 1, 1>(a.in, (float* const*)a.out, a.count, whole_grid(), f);
    block_sums<3>(f.total, a.partials + 3 * (i64)blockIdx.x);
}

struct Square : Sums<1> {
    __device__ __forceinline__ void operator()(const float* x, float*) { part[0] = fmaf(x[0], x[0], part[0]); }
};

// Every run has blocks of its own, as many as its length asks for.
extern "C" __global__ void run_squares(Args a) {
    int run = 0;
    while (run + 1 < a.runs && (int)blockIdx.x >= a.first[run + 1]) ++run;
    const Part part = {(int)blockIdx.x - a.first[run], a.first[run + 1] - a.first[run]};
    const float* in[1] = {a.in[a.source[run]] + a.start[run]};
    Square f;
    sweep<1, 0, 2>(in, (float* const*)a.out, a.stop[run] - a.start[run], part, f);
    block_sums<1>(f.total, a.partials + blockIdx.x);
}
