// Roll-out of an ensemble of recurrent state-space models: the whole path in one launch. A block follows one
// path of one model; its state lies in shared memory, the model's weights stay in the L1 cache. What only
// tells the loss (trunk and head of a tick) is worked out beside the first layers of the next tick.

// Layers in the order of rollout.py.
enum { EMBED, POSTERIOR, ENTER, GRU_X, GRU_H, PRIOR_IN, PRIOR_OUT, TRUNK, HEAD, LAYERS };

#define UNIFORM 0.01f

// Mirrors structs.Rollout field by field.
struct Rollout {
    const float *layer[LAYERS], *bias[LAYERS];
    const float *features, *actions, *ahead, *noise;
    float *steps, *raws;
    int samples, context, horizon;
    int seen, acted, width, hidden, latent, classes;  // lengths of x, a, h, the layers between, and z
};

__device__ __forceinline__ float sigmoid(float x) { return 0.5f * (1.0f + tanhf(0.5f * x)); }

__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// Sum of x[i] w[i * stride], four sums side by side: shorter chains, and less rounding.
__device__ __forceinline__ float product(const float* x, const float* w, int n, int stride) {
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    int i = 0;
#pragma unroll 4
    for (; i + 4 <= n; i += 4) {
#pragma unroll
        for (int k = 0; k < 4; ++k) sum[k] = fmaf(x[i + k], __ldg(w + (i64)(i + k) * stride), sum[k]);
    }
    for (; i < n; ++i) sum[0] = fmaf(x[i], __ldg(w + (i64)i * stride), sum[0]);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

struct Path {
    const Rollout& a;
    const int member;
    float *h, *z, *x, *action, *entered, *inner, *trunk, *from_x, *from_h, *logits, *scores;

    __device__ Path(const Rollout& args, int member_, float* shared) : a(args), member(member_) {
        // h, z and x side by side are what the trunk reads; h and z what follows h alone.
        h = shared;
        z = h + a.width;
        x = z + a.latent;
        action = x + a.seen;
        entered = action + a.acted;
        inner = entered + a.hidden;
        trunk = inner + a.hidden;
        from_x = trunk + a.hidden;
        from_h = from_x + 3 * a.width;
        logits = from_h + 3 * a.width;
        scores = logits + a.latent;
    }

    __device__ __forceinline__ const float* weight(int name, int inputs, int outputs) const {
        return a.layer[name] + (i64)member * inputs * outputs;
    }

    // Output o of a layer.
    __device__ __forceinline__ float dense(int name, const float* from, int inputs, int outputs, int o) const {
        const float offset = __ldg(a.bias[name] + (i64)member * outputs + o);
        return product(from, weight(name, inputs, outputs) + o, inputs, outputs) + offset;
    }

    // Output o of a layer whose inputs lie in two places.
    __device__ __forceinline__ float dense2(
        int name, const float* one, int n, const float* other, int m, int outputs, int o) const {
        const float* w = weight(name, n + m, outputs) + o;
        const float offset = __ldg(a.bias[name] + (i64)member * outputs + o);
        return product(one, w, n, outputs) + product(other, w + (i64)n * outputs, m, outputs) + offset;
    }

    __device__ __forceinline__ void load(float* to, const float* from, int n) const {
        for (int k = threadIdx.x; k < n; k += blockDim.x) to[k] = __ldg(from + k);
    }

    __device__ __forceinline__ void enter(int k) const {
        entered[k] = silu(dense2(ENTER, z, a.latent, action, a.acted, a.hidden, k));
    }

    // Outputs of the two products of the GRU; ends with h of the next tick.
    __device__ __forceinline__ void gates(int k) const {
        const int gate = 3 * a.width;
        if (k < gate) {
            from_x[k] = dense(GRU_X, entered, a.hidden, gate, k);
        } else {
            from_h[k - gate] = dense(GRU_H, h, a.width, gate, k - gate);
        }
    }

    __device__ __forceinline__ void turn() const {
        for (int k = threadIdx.x; k < a.width; k += blockDim.x) {
            const float reset = sigmoid(from_x[k] + from_h[k]);
            const float update = sigmoid(from_x[a.width + k] + from_h[a.width + k]);
            const float fresh = tanhf(from_x[2 * a.width + k] + reset * from_h[2 * a.width + k]);
            h[k] = fresh + update * (h[k] - fresh);
        }
        __syncthreads();
    }

    // z by the logits' distribution and Gumbel noise; `mine` is the noise of this thread's first entry.
    __device__ __forceinline__ void draw(const float* noise, float mine) const {
        for (int k = threadIdx.x; k < a.latent; k += blockDim.x) {
            const float* group = logits + k / a.classes * a.classes;
            float most = group[0], sum = 0.0f;
            for (int c = 1; c < a.classes; ++c) most = fmaxf(most, group[c]);
            for (int c = 0; c < a.classes; ++c) sum += expf(group[c] - most);
            const float p = (1.0f - UNIFORM) * expf(logits[k] - most) / sum + UNIFORM / (float)a.classes;
            scores[k] = logf(p) + (k == threadIdx.x ? mine : __ldg(noise + k));
        }
        __syncthreads();
        for (int k = threadIdx.x; k < a.latent; k += blockDim.x) {
            const float* group = scores + k / a.classes * a.classes;
            int best = 0;
            for (int c = 1; c < a.classes; ++c) best = group[c] > group[best] ? c : best;
            z[k] = k % a.classes == best ? 1.0f : 0.0f;
        }
        __syncthreads();
    }

    __device__ __forceinline__ float peek(const float* noise) const {
        return threadIdx.x < a.latent ? __ldg(noise + threadIdx.x) : 0.0f;
    }

    // z from the posterior of the features in x.
    __device__ __forceinline__ void observe(const float* noise) const {
        const float mine = peek(noise);
        for (int k = threadIdx.x; k < a.hidden; k += blockDim.x) {
            inner[k] = silu(dense(EMBED, x, a.seen, a.hidden, k));
        }
        __syncthreads();
        for (int k = threadIdx.x; k < a.latent; k += blockDim.x) {
            logits[k] = dense2(POSTERIOR, h, a.width, inner, a.hidden, a.latent, k);
        }
        __syncthreads();
        draw(noise, mine);
    }
};

extern "C" __global__ void rollout(Rollout a) {
    DYNAMIC_SHARED(float, shared);
    const int row = blockIdx.x, member = blockIdx.y, rows = gridDim.x, members = gridDim.y;
    const Path path(a, member, shared);
    const int start = row / a.samples, ticks = a.context + 1;
    const float* features = a.features + (i64)start * ticks * a.seen;
    const float* actions = a.actions + (i64)start * ticks * a.acted;
    const i64 draw = (i64)members * rows * a.latent;  // from one draw's noise to the next one's
    const float* noise = a.noise + ((i64)member * rows + row) * a.latent;
    for (int k = threadIdx.x; k < a.width; k += blockDim.x) path.h[k] = 0.0f;
    path.load(path.x, features, a.seen);
    __syncthreads();
    path.observe(noise);
    noise += draw;
    for (int t = 0; t < a.context; ++t) {
        // The prior's draw would be replaced by the posterior's.
        path.load(path.action, actions + (i64)t * a.acted, a.acted);
        path.load(path.x, features + (i64)(t + 1) * a.seen, a.seen);
        __syncthreads();
        for (int k = threadIdx.x; k < a.hidden; k += blockDim.x) path.enter(k);
        __syncthreads();
        for (int k = threadIdx.x; k < 6 * a.width; k += blockDim.x) path.gates(k);
        __syncthreads();
        path.turn();
        path.observe(noise + draw);
        noise += 2 * draw;
    }
    path.load(path.action, actions + (i64)a.context * a.acted, a.acted);
    float mine = a.horizon ? path.peek(noise) : 0.0f;
    __syncthreads();
    const i64 out = ((i64)member * rows + row) * a.horizon;
    for (int t = 0; t <= a.horizon; ++t) {
        const bool moves = t < a.horizon, tells = t > 0;  // tick t begins, tick t - 1 ends
        const int first = moves ? a.hidden : 0, more = tells ? a.hidden : 0;
        for (int k = threadIdx.x; k < first + more; k += blockDim.x) {
            if (k < first) {
                path.enter(k);
            } else {
                const int o = k - first;
                path.trunk[o] = silu(path.dense(TRUNK, path.h, a.width + a.latent + a.seen, a.hidden, o));
            }
        }
        __syncthreads();
        const int second = moves ? 6 * a.width : 0, told = tells ? 2 : 0;
        for (int k = threadIdx.x; k < second + told; k += blockDim.x) {
            if (k < second) {
                path.gates(k);
            } else {
                float* to = k == second ? a.steps : a.raws;
                to[out + t - 1] = path.dense(HEAD, path.trunk, a.hidden, 2, k - second);
            }
        }
        if (t == 0) path.load(path.action, a.ahead, a.acted);
        __syncthreads();
        if (!moves) break;
        path.turn();
        for (int k = threadIdx.x; k < a.hidden; k += blockDim.x) {
            path.inner[k] = silu(path.dense(PRIOR_IN, path.h, a.width, a.hidden, k));
        }
        __syncthreads();
        for (int k = threadIdx.x; k < a.latent; k += blockDim.x) {
            path.logits[k] = path.dense(PRIOR_OUT, path.inner, a.hidden, a.latent, k);
        }
        __syncthreads();
        path.draw(noise, mine);
        // Noise comes from far away: asked for a tick before it is used.
        noise += draw;
        if (t + 1 < a.horizon) mine = path.peek(noise);
    }
}
