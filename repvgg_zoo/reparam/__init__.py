"""Re-parameterization: ``fusion`` of plain arrays, ``to_deploy`` for modules, ``equivalence`` of the two forms.

Only ``fusion`` works without MegEngine; import the submodule that you need.
"""
