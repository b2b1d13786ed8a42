//! CUDA kernels and their launchers; knows nothing of models.
