"""The kernels of compiled inference, as LLVM IR that is compiled for the host's processor when it is needed."""
