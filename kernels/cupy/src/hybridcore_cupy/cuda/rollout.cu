// Closed-loop roll-out of an ensemble of GRU cells: the whole horizon in one launch. A block holds ROWS rows
// of one model in shared memory; weights are read once per step for all of them, and stay in the L2 cache.

#ifndef ROWS
#define ROWS 4
#endif

// Sums are taken in runs of this length, so that rounding grows with its root and not with the width's.
#define RUN 16

// Mirrors structs.Rollout field by field.
struct Rollout {
    const float *inputs, *recurrent, *input_bias, *recurrent_bias, *readout, *readout_bias;
    const float *hidden, *actions, *output;
    float *outputs, *last;
    int members, rows, steps, width, seen, made;  // width H, seen I, made O
};

__device__ __forceinline__ float sigmoid(float x) { return 0.5f * tanhf(0.5f * x) + 0.5f; }

extern "C" __global__ void rollout(Rollout a) {
    DYNAMIC_SHARED(float, shared);
    const int H = a.width, I = a.seen, O = a.made, A = I - O;
    float* x = shared;           // ROWS x I
    float* h = x + ROWS * I;     // ROWS x H
    float* next = h + ROWS * H;  // ROWS x H
    const int member = blockIdx.y, base = blockIdx.x * ROWS;
    const int rows = a.rows - base < ROWS ? a.rows - base : ROWS;
    const float* W = a.inputs + (i64)member * I * 3 * H;
    const float* U = a.recurrent + (i64)member * H * 3 * H;
    const float* b = a.input_bias + (i64)member * 3 * H;
    const float* c = a.recurrent_bias + (i64)member * 3 * H;
    const float* V = a.readout + (i64)member * H * O;
    const float* d = a.readout_bias + (i64)member * O;
    for (int k = threadIdx.x; k < ROWS * H; k += blockDim.x) {
        h[k] = k / H < rows ? a.hidden[((i64)member * a.rows + base + k / H) * H + k % H] : 0.0f;
    }
    for (int k = threadIdx.x; k < ROWS * O; k += blockDim.x) {
        x[k / O * I + k % O] = k / O < rows ? a.output[((i64)member * a.rows + base + k / O) * O + k % O] : 0.0f;
    }
    for (int t = 0; t < a.steps; ++t) {
        for (int k = threadIdx.x; k < ROWS * A; k += blockDim.x) {
            const int row = k / A, column = k % A;
            x[row * I + O + column] = row < rows ? a.actions[((i64)t * a.rows + base + row) * A + column] : 0.0f;
        }
        __syncthreads();
        for (int unit = threadIdx.x; unit < H; unit += blockDim.x) {
            float reset[ROWS], update[ROWS], inside[ROWS], before[ROWS];
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
                reset[row] = b[unit] + c[unit];
                update[row] = b[H + unit] + c[H + unit];
                inside[row] = b[2 * H + unit];
                before[row] = c[2 * H + unit];
            }
            for (int i = 0; i < I; ++i) {
                const float* w = W + (i64)i * 3 * H + unit;
                const float wr = __ldg(w), wz = __ldg(w + H), wn = __ldg(w + 2 * H);
#pragma unroll
                for (int row = 0; row < ROWS; ++row) {
                    const float value = x[row * I + i];
                    reset[row] = fmaf(value, wr, reset[row]);
                    update[row] = fmaf(value, wz, update[row]);
                    inside[row] = fmaf(value, wn, inside[row]);
                }
            }
            for (int start = 0; start < H; start += RUN) {
                const int stop = start + RUN < H ? start + RUN : H;
                float r[ROWS] = {0.0f}, z[ROWS] = {0.0f}, n[ROWS] = {0.0f};
#pragma unroll 4
                for (int i = start; i < stop; ++i) {
                    const float* w = U + (i64)i * 3 * H + unit;
                    const float wr = __ldg(w), wz = __ldg(w + H), wn = __ldg(w + 2 * H);
#pragma unroll
                    for (int row = 0; row < ROWS; ++row) {
                        const float value = h[row * H + i];
                        r[row] = fmaf(value, wr, r[row]);
                        z[row] = fmaf(value, wz, z[row]);
                        n[row] = fmaf(value, wn, n[row]);
                    }
                }
#pragma unroll
                for (int row = 0; row < ROWS; ++row) {
                    reset[row] += r[row];
                    update[row] += z[row];
                    before[row] += n[row];
                }
            }
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
                const float fresh = tanhf(inside[row] + sigmoid(reset[row]) * before[row]);
                next[row * H + unit] = fresh + sigmoid(update[row]) * (h[row * H + unit] - fresh);
            }
        }
        __syncthreads();
        for (int k = threadIdx.x; k < ROWS * O; k += blockDim.x) {
            const int row = k / O, column = k % O;
            float value = d[column];
            for (int start = 0; start < H; start += RUN) {
                const int stop = start + RUN < H ? start + RUN : H;
                float run = 0.0f;
                for (int i = start; i < stop; ++i) run = fmaf(next[row * H + i], __ldg(V + (i64)i * O + column), run);
                value += run;
            }
            x[row * I + column] = value;
            if (row < rows) {
                a.outputs[(((i64)t * a.members + member) * a.rows + base + row) * O + column] = value;
            }
        }
        float* swap = h;
        h = next;
        next = swap;
    }
    __syncthreads();
    for (int k = threadIdx.x; k < rows * H; k += blockDim.x) {
        a.last[((i64)member * a.rows + base + k / H) * H + k % H] = h[k];
    }
}
