"""Compiled inference: RepVGG and RepVGGplus on the CPU, by kernels that are compiled for the processor at hand.

``api`` has ``compile``. It goes one way: the weights of a deploy form (``ir``) are lowered to kernel calls
(``lowering``, ``packing``, ``plan``), which ``jit`` compiles and ``kernel_runner`` runs on the threads of
``thread_pool``; the outputs are compared with the ``reference``. ``eager`` has all that needs MegEngine.
"""
