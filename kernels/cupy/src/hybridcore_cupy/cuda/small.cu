// Factorisations of small symmetric matrices by one block, so that a sequence of matrix products need not wait
// for the host or for a library's set-up between them. in[0]: size x size float64, size <= MOST_SIDE.

#define MOST_SIDE 40

// out[0]: T, upper triangular, with T' G T = 1: the inverse of the Cholesky factor's transpose. A column that
// depends on those before it, up to rounding, becomes zero.
extern "C" __global__ void whiten(Args a) {
    __shared__ double L[MOST_SIDE][MOST_SIDE], size[MOST_SIDE], inverse[MOST_SIDE];
    const int n = (int)a.count;
    const double* G = (const double*)a.in[0];
    double* T = (double*)a.out[0];
    for (int k = threadIdx.x; k < n * n; k += blockDim.x) L[k / n][k % n] = G[k];
    __syncthreads();
    for (int j = threadIdx.x; j < n; j += blockDim.x) size[j] = L[j][j];
    __syncthreads();
    for (int j = 0; j < n; ++j) {
        if (threadIdx.x == 0) inverse[j] = L[j][j] > 1e-12 * size[j] ? 1.0 / sqrt(L[j][j]) : 0.0;
        __syncthreads();
        for (int i = j + 1 + threadIdx.x; i < n; i += blockDim.x) L[i][j] *= inverse[j];
        __syncthreads();
        const int left = n - j - 1;
        for (int k = threadIdx.x; k < left * left; k += blockDim.x) {
            const int i = j + 1 + k / left, m = j + 1 + k % left;
            if (m <= i) L[i][m] -= L[i][j] * L[m][j];
        }
        __syncthreads();
    }
    for (int c = threadIdx.x; c < n; c += blockDim.x) {
        for (int i = n - 1; i >= 0; --i) {
            double value = i == c ? 1.0 : 0.0;
            for (int m = i + 1; m <= c; ++m) value -= L[m][i] * T[m * n + c];
            T[i * n + c] = i <= c && inverse[c] != 0.0 ? value * inverse[i] : 0.0;
        }
    }
}

// out[0]: eigenvectors in columns, that of the largest eigenvalue first. Jacobi's method with n / 2 rotations at
// a time (Golub and Van Loan, "Matrix Computations", section 8.5.6); ten sweeps are more than sides up to
// MOST_SIDE need.
extern "C" __global__ void principal(Args a) {
    __shared__ double M[MOST_SIDE][MOST_SIDE], V[MOST_SIDE][MOST_SIDE];
    __shared__ double cosine[MOST_SIDE / 2], sine[MOST_SIDE / 2];
    __shared__ int low[MOST_SIDE / 2], high[MOST_SIDE / 2], order[MOST_SIDE];
    const int n = (int)a.count, even = n + n % 2, pairs = even / 2;
    const double* G = (const double*)a.in[0];
    double* out = (double*)a.out[0];
    for (int k = threadIdx.x; k < even * even; k += blockDim.x) {
        const int i = k / even, j = k % even;
        M[i][j] = i < n && j < n ? G[i * n + j] : 0.0;
        V[i][j] = i == j ? 1.0 : 0.0;
    }
    __syncthreads();
    for (int turn = 0; turn < 10 * (even - 1); ++turn) {
        // A tournament: all pairs meet once in even - 1 turns.
        for (int k = threadIdx.x; k < pairs; k += blockDim.x) {
            const int others = even - 1;
            const int p = k == 0 ? others : (turn + k) % others, q = (turn + others - k) % others;
            const double off = M[p][q];
            double c = 1.0, s = 0.0;
            if (fabs(off) > 1e-18 * sqrt(fabs(M[p][p] * M[q][q])) && fabs(off) > 1e-280) {
                const double tau = (M[q][q] - M[p][p]) / (2.0 * off);
                const double t = (tau < 0.0 ? -1.0 : 1.0) / (fabs(tau) + sqrt(1.0 + tau * tau));
                c = 1.0 / sqrt(1.0 + t * t);
                s = t * c;
            }
            low[k] = p;
            high[k] = q;
            cosine[k] = c;
            sine[k] = s;
        }
        __syncthreads();
        for (int k = threadIdx.x; k < pairs * even; k += blockDim.x) {
            const int pair = k / even, j = k % even, p = low[pair], q = high[pair];
            const double c = cosine[pair], s = sine[pair], x = M[p][j], y = M[q][j];
            M[p][j] = c * x - s * y;
            M[q][j] = s * x + c * y;
        }
        __syncthreads();
        for (int k = threadIdx.x; k < pairs * even; k += blockDim.x) {
            const int pair = k / even, i = k % even, p = low[pair], q = high[pair];
            const double c = cosine[pair], s = sine[pair], x = M[i][p], y = M[i][q], v = V[i][p], w = V[i][q];
            M[i][p] = c * x - s * y;
            M[i][q] = s * x + c * y;
            V[i][p] = c * v - s * w;
            V[i][q] = s * v + c * w;
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        for (int i = 0; i < n; ++i) order[i] = i;
        for (int i = 0; i < n; ++i) {
            int best = i;
            for (int j = i + 1; j < n; ++j) {
                if (M[order[j]][order[j]] > M[order[best]][order[best]]) best = j;
            }
            const int swap = order[i];
            order[i] = order[best];
            order[best] = swap;
        }
    }
    __syncthreads();
    for (int k = threadIdx.x; k < n * n; k += blockDim.x) out[k] = V[k / n][order[k % n]];
}
