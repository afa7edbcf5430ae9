// History in bfloat16 and int8; bit for bit what hybridcore.kernels.encoding gives.

__device__ __forceinline__ u16 to_bfloat16(float value) {
    const u32 bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)((bits >> 16) | 0x40u);
    return (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

__device__ __forceinline__ u32 two_bfloat16(float low, float high) {
    return (u32)to_bfloat16(low) | ((u32)to_bfloat16(high) << 16);
}

// Each thread moves what makes 16 bytes of float32, so that both sides of a warp are contiguous: two writes of
// 16 bytes with a gap between them fill half a sector each, which costs a third of the bandwidth.
// U vectors are in flight per thread; one(i) does a single number.
template <int U, class Load, class Save, class One>
__device__ __forceinline__ void by_fours(i64 count, bool aligned, Load load, Save save, One one) {
    const i64 vectors = aligned ? count / 4 : 0, tile = (i64)blockDim.x * U;
    for (i64 v = blockIdx.x * tile + threadIdx.x; v < vectors; v += gridDim.x * tile) {
        decltype(load(v)) data[U];
#pragma unroll
        for (int u = 0; u < U; ++u) {
            if (v + u * blockDim.x < vectors) data[u] = load(v + u * blockDim.x);
        }
#pragma unroll
        for (int u = 0; u < U; ++u) {
            if (v + u * blockDim.x < vectors) save(v + u * blockDim.x, data[u]);
        }
    }
    const i64 threads = (i64)gridDim.x * blockDim.x;
    for (i64 i = 4 * vectors + (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += threads) one(i);
}

extern "C" __global__ void encode_bfloat16(Args a) {
    const float* in = a.in[0];
    u16* out = (u16*)a.out[0];
    by_fours<1>(
        a.count, phase(in) == 0 && ((u64)out & 7) == 0, [=](i64 v) { return fetch((const float4*)in + v); },
        [=](i64 v, const float4& x) {
            uint2 made;
            made.x = two_bfloat16(x.x, x.y);
            made.y = two_bfloat16(x.z, x.w);
            store((uint2*)out + v, made);
        },
        [=](i64 i) { out[i] = to_bfloat16(in[i]); });
}

extern "C" __global__ void decode_bfloat16(Args a) {
    const u16* in = (const u16*)a.in[0];
    float* out = (float*)a.out[0];
    by_fours<4>(
        a.count, phase(out) == 0 && ((u64)in & 7) == 0, [=](i64 v) { return fetch((const uint2*)in + v); },
        [=](i64 v, const uint2& code) {
            float4 x;
            x.x = __uint_as_float(code.x << 16);
            x.y = __uint_as_float(code.x & 0xffff0000u);
            x.z = __uint_as_float(code.y << 16);
            x.w = __uint_as_float(code.y & 0xffff0000u);
            store((float4*)out + v, x);
        },
        [=](i64 i) { out[i] = __uint_as_float((u32)in[i] << 16); });
}

__device__ __forceinline__ u32 mix(u32 x) {
    x = (x ^ (x >> 16)) * 0x21f0aaadu;
    x = (x ^ (x >> 15)) * 0x735a2d97u;
    return x ^ (x >> 15);
}

// The larger one; NaN where one of them is.
__device__ __forceinline__ float larger(float a, float b) { return b > a || b != b ? b : a; }

// One warp per block of 256 numbers: lane l holds places 4 l to 4 l + 3 of both halves.
extern "C" __global__ void encode_int8(Args a) {
    const int lane = threadIdx.x & 31;
    const i64 warp = ((i64)blockIdx.x * blockDim.x + threadIdx.x) >> 5;
    const i64 warps = ((i64)gridDim.x * blockDim.x) >> 5;
    const i64 blocks = (a.count + 255) / 256;
    const float* in = a.in[0];
    signed char* codes = (signed char*)a.out[0];
    float* scales = (float*)a.out[1];
    const bool aligned = phase(in) == 0 && ((u64)codes & 3) == 0;
    for (i64 block = warp; block < blocks; block += warps) {
        const i64 base = 256 * block;
        const bool whole = aligned && base + 256 <= a.count;
        float x[8];
        if (whole) {
            *(float4*)x = fetch((const float4*)(in + base) + lane);
            *(float4*)(x + 4) = fetch((const float4*)(in + base + 128) + lane);
        } else {
            for (int k = 0; k < 8; ++k) {
                const i64 at = base + (k >> 2) * 128 + 4 * lane + (k & 3);
                x[k] = at < a.count ? in[at] : 0.0f;
            }
        }
        float most = 0.0f;
#pragma unroll
        for (int k = 0; k < 8; ++k) most = larger(most, fabsf(x[k]));
#pragma unroll
        for (int offset = 16; offset > 0; offset >>= 1) {
            most = larger(most, __shfl_xor_sync(0xffffffffu, most, offset));
        }
        const float scale = most * (1.0f / 127.0f), safe = scale > 0.0f ? scale : 1.0f;
        const u32 row = mix((u32)block ^ a.key);
        u32 words[2] = {0, 0};
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            const u32 place = (k >> 2) * 128 + 4 * lane + (k & 3);
            const float uniform = (float)(mix(row + place) >> 8) * (1.0f / 16777216.0f);
            const float level = floorf(__fdiv_rn(x[k], safe) + uniform);
            words[k >> 2] |= ((u32)(int)fminf(fmaxf(level, -127.0f), 127.0f) & 0xffu) << 8 * (k & 3);
        }
        if (whole) {
            ((u32*)(codes + base))[lane] = words[0];
            ((u32*)(codes + base + 128))[lane] = words[1];
        } else {
            for (int k = 0; k < 8; ++k) {
                const i64 at = base + (k >> 2) * 128 + 4 * lane + (k & 3);
                if (at < a.count) codes[at] = (signed char)(words[k >> 2] >> 8 * (k & 3) & 0xffu);
            }
        }
        if (lane == 0) scales[block] = scale;
    }
}

// in[0]: codes, in[1]: scales.
extern "C" __global__ void decode_int8(Args a) {
    const signed char* codes = (const signed char*)a.in[0];
    const float* scales = a.in[1];
    float* out = (float*)a.out[0];
    struct Coded {
        u32 word;
        float scale;
    };
    by_fours<2>(
        a.count, phase(out) == 0 && ((u64)codes & 3) == 0,
        [=](i64 v) {
            const Coded found = {fetch((const u32*)codes + v), __ldg(scales + v / 64)};
            return found;
        },
        [=](i64 v, const Coded& code) {
            float4 x;
            x.x = (float)(signed char)(code.word & 0xffu) * code.scale;
            x.y = (float)(signed char)(code.word >> 8 & 0xffu) * code.scale;
            x.z = (float)(signed char)(code.word >> 16 & 0xffu) * code.scale;
            x.w = (float)(signed char)(code.word >> 24) * code.scale;
            store((float4*)out + v, x);
        },
        [=](i64 i) { out[i] = (float)codes[i] * scales[i / 256]; });
}
