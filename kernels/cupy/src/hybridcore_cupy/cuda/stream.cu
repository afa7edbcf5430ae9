// One pass over two or three arrays: inner products, window means, displacements, norms, jumps.

struct Products : Sums<3> {
    __device__ __forceinline__ void operator()(const float* x, float*) {
        part[0] = fmaf(x[0], x[0], part[0]);
        part[1] = fmaf(x[1], x[1], part[1]);
        part[2] = fmaf(x[0], x[1], part[2]);
    }
};

extern "C" __global__ void products(Args a) {
    Products f;
    sweep<2, 0, 2>(a.in, (float* const*)a.out, a.count, f);
    grid_sums<3>(f.total, a, 0);
}

struct Distance : Sums<1> {
    __device__ __forceinline__ void operator()(const float* x, float*) {
        const float gap = x[0] - x[1];
        part[0] = fmaf(gap, gap, part[0]);
    }
};

extern "C" __global__ void distance2(Args a) {
    Distance f;
    sweep<2, 0, 2>(a.in, (float* const*)a.out, a.count, f);
    grid_sums<1>(f.total, a, 0);
}

struct Mean {
    float scale;
    __device__ __forceinline__ void operator()(const float* x, float* y) { y[0] = x[0] * scale; }
    __device__ __forceinline__ void flush() {}
};

extern "C" __global__ void window_mean(Args a) {
    Mean f = {a.scale};
    sweep<1, 1, 4>(a.in, (float* const*)a.out, a.count, f);
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
    sweep<2, 2, 2>(a.in, (float* const*)a.out, a.count, f);
}

struct Difference {
    __device__ __forceinline__ void operator()(const float* x, float* y) { y[0] = x[0] - x[1]; }
    __device__ __forceinline__ void flush() {}
};

extern "C" __global__ void difference(Args a) {
    Difference f;
    sweep<2, 1, 2>(a.in, (float* const*)a.out, a.count, f);
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
    sweep<3, 1, 2>(a.in, (float* const*)a.out, a.count, f);
    grid_sums<3>(f.total, a, 0);
}

struct Square : Sums<1> {
    __device__ __forceinline__ void operator()(const float* x, float*) { part[0] = fmaf(x[0], x[0], part[0]); }
};

extern "C" __global__ void run_squares(Args a) {
    const int run = blockIdx.y;
    const float* in[1] = {a.in[0] + a.start[run]};
    Square f;
    sweep<1, 0, 4>(in, (float* const*)a.out, a.stop[run] - a.start[run], f);
    grid_sums<1>(f.total, a, run);
}

struct TwoSquares : Sums<2> {
    __device__ __forceinline__ void operator()(const float* x, float*) {
        part[0] = fmaf(x[0], x[0], part[0]);
        part[1] = fmaf(x[1], x[1], part[1]);
    }
};

extern "C" __global__ void jump_squares(Args a) {
    const int run = blockIdx.y;
    const float* in[2] = {a.in[0] + a.start[run], a.in[1] + a.start[run]};
    TwoSquares f;
    sweep<2, 0, 2>(in, (float* const*)a.out, a.stop[run] - a.start[run], f);
    grid_sums<2>(f.total, a, run);
}

// Factor per group from the squares of all runs: the scale asked for, shortened by the cap; NaN for all where
// anything is not finite. weight holds the scales.
extern "C" __global__ void jump_factors(Args a) {
    if (blockIdx.x || blockIdx.y || threadIdx.x) return;
    double size[MOST_GROUPS] = {0.0}, length[MOST_GROUPS] = {0.0}, whole = 0.0;
    for (int run = 0; run < a.runs; ++run) {
        size[a.group[run]] += a.totals[2 * run];
        length[a.group[run]] += a.totals[2 * run + 1];
        whole += a.totals[2 * run];
    }
    whole = sqrt(whole);
    double check = whole;
    double found[MOST_GROUPS];
    for (int g = 0; g < MOST_GROUPS; ++g) {
        const double factor = a.weight[g], limit = a.scale * fmax(sqrt(size[g]), 0.01 * whole);
        const double moved = fabs(factor) * sqrt(length[g]);
        found[g] = moved > limit ? factor * (limit / moved) : factor;
        check += sqrt(length[g]) + found[g];
    }
    const bool sound = check - check == 0.0;
    for (int g = 0; g < MOST_GROUPS; ++g) a.factors[g] = sound ? (float)found[g] : (float)(check - check);
}

struct Jump {
    float factor;
    __device__ __forceinline__ void operator()(const float* x, float* y) {
        y[0] = factor == factor ? fmaf(x[1], factor, x[0]) : x[0];
    }
    __device__ __forceinline__ void flush() {}
};

extern "C" __global__ void jump_apply(Args a) {
    const int run = blockIdx.y;
    const float* in[2] = {a.in[0] + a.start[run], a.in[1] + a.start[run]};
    float* out[1] = {(float*)a.out[0] + a.start[run]};
    Jump f = {a.factors[a.group[run]]};
    sweep<2, 1, 2>(in, out, a.stop[run] - a.start[run], f);
}
