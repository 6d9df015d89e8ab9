"""A stand-in for torchvision, with which timm can be imported beside any build of torch.

timm imports torchvision for its data pipelines, which the peer tests never call; its networks do not use it. The real
package works only with the build of torch that it was compiled for, and adds gigabytes. This folder is beside the
scripts that run timm, so `import torchvision` finds it there: every submodule exists, and every name in one is an empty
class.
"""

import importlib.abc
import importlib.machinery
import sys
import types

__version__ = "0"  # mmengine logs it


class _AnyName(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyName(name, (), {})


class _Module(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyName(name, (), {"__module__": self.__name__})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.startswith(__name__ + "."):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.append(_Finder())
