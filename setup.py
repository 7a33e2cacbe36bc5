"""The part in C, which setup.cfg cannot describe; everything else is there."""

from setuptools import Extension, setup

KERNELS = Extension(
    "drl_mpi.updating._kernels",
    sources=["drl_mpi/updating/kernels.c"],
    depends=["setup.py"],
    extra_compile_args=[
        "-std=c11",
        "-O3",
        "-ffp-contract=off",  # a fused multiply-add rounds once, NumPy twice
        "-fno-math-errno",
        "-fopenmp-simd",
    ],
    optional=True,  # without a compiler NumPy does it: drl_mpi/updating/kernels.py
)

setup(ext_modules=[KERNELS])
