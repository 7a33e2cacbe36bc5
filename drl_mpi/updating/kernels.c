/* The steps of shard_optimizers.py in one pass over memory, bit for bit what NumPy makes there.

   All operations are float32, in NumPy's order, and none is fused or reassociated: a vector and a
   shard of it, any vector width and any machine give the same bits. No header of Python or NumPy;
   kernels.py loads this through ctypes. */

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__FAST_MATH__) || FLT_EVAL_METHOD != 0
#error "these options or this machine do not compute in float32: leave it to NumPy"
#endif

/* One function per instruction set, chosen when the library is loaded: nodes may differ. RMSProp of
   1.7M parameters in a warm L3 cache took 0.49 ms, 0.59 and 1.0 (EPYC 9005). The choice is made
   through glibc; aarch64 and others have their vectors in the default instruction set. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#ifndef CLONES
#define CLONES
#endif

/* Without a promise that iterations are independent, source == target would go one by one. */
#define EACH _Pragma("omp simd reduction(| : broken)") for (ptrdiff_t i = 0; i < size; i++)

#define STEP(name)                                                                                \
    CLONES int name(ptrdiff_t size, const float *source, float *target, const float *gradient,    \
                    const float *scalars, float *const *slots)

/* 0 if x is finite, else NaN. */
static inline float nothing(float x)
{
    return x - x;
}

static inline uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* The new parameter, NaN if its squares have overflowed. No branches: they would keep compilers
   from making vectors of it. */
#define WRITE(change, squares)                                                                    \
    const float next = source[i] - (change) - nothing(squares);                                   \
    broken |= bits_of(nothing(next));                                                             \
    target[i] = next

/* kernels.py refuses a library with another number: raise both when a signature changes. */
int drl_mpi_kernels_version(void)
{
    return 1;
}

/* scalars: eps, rate; slots: sum_of_squares */
STEP(adagrad)
{
    const float eps = scalars[0], rate = scalars[1];
    float *sums = slots[0];
    uint32_t broken = 0;
    EACH {
        const float d = gradient[i];
        const float sum = sums[i] + d * d;
        sums[i] = sum;
        WRITE(d / (sqrtf(sum) + eps) * rate, sum);
    }
    return broken == 0;
}

/* scalars: decay, 1 - decay, eps, rate; slots: mean_square */
STEP(rmsprop)
{
    const float decay = scalars[0], rest = scalars[1], eps = scalars[2], rate = scalars[3];
    float *squares = slots[0];
    uint32_t broken = 0;
    EACH {
        const float d = gradient[i];
        const float square = squares[i] * decay + d * rest * d;
        squares[i] = square;
        WRITE(d / sqrtf(square + eps) * rate, square);
    }
    return broken == 0;
}

/* scalars: decay, 1 - decay, eps, rate, momentum; slots: mean_square, velocity */
STEP(rmsprop_momentum)
{
    const float decay = scalars[0], rest = scalars[1], eps = scalars[2], rate = scalars[3];
    const float momentum = scalars[4];
    float *squares = slots[0], *velocities = slots[1];
    uint32_t broken = 0;
    EACH {
        const float d = gradient[i];
        const float square = squares[i] * decay + d * rest * d;
        const float velocity = velocities[i] * momentum + d / sqrtf(square + eps) * rate;
        squares[i] = square;
        velocities[i] = velocity;
        WRITE(velocity, square);
    }
    return broken == 0;
}

/* scalars: decay, 1 - decay, eps, rate; slots: mean_square, mean_gradient */
STEP(centred_rmsprop)
{
    const float decay = scalars[0], rest = scalars[1], eps = scalars[2], rate = scalars[3];
    float *squares = slots[0], *means = slots[1];
    uint32_t broken = 0;
    EACH {
        const float d = gradient[i], part = d * rest;
        const float mean = means[i] * decay + part;
        const float square = squares[i] * decay + part * d;
        means[i] = mean;
        squares[i] = square;
        WRITE(d / sqrtf(fabsf(square - mean * mean) + eps) * rate, square);
    }
    return broken == 0;
}

/* scalars: beta1, 1 - beta1, beta2, 1 - beta2, eps, rate; slots: mean, mean_square */
STEP(adam)
{
    const float beta1 = scalars[0], rest1 = scalars[1], beta2 = scalars[2], rest2 = scalars[3];
    const float eps = scalars[4], rate = scalars[5];
    float *means = slots[0], *squares = slots[1];
    uint32_t broken = 0;
    EACH {
        const float d = gradient[i];
        const float mean = means[i] * beta1 + d * rest1;
        const float square = squares[i] * beta2 + d * rest2 * d;
        means[i] = mean;
        squares[i] = square;
        WRITE(mean / (sqrtf(square) + eps) * rate, square);
    }
    return broken == 0;
}
