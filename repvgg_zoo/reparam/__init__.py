"""Re-parameterisation: ``fusion`` on arrays, ``convert`` on modules, ``report`` on the difference.

Only ``fusion`` works without MegEngine; import the submodule that you need.
"""
