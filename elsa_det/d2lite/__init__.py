"""d2lite: the embedded default behind :mod:`elsa_det.d2` where Detectron2 is not installed.

Independent code behind the part of Detectron2's API that ``elsa_det.d2`` names, with module paths mirrored:
``detectron2.a.b`` is ``elsa_det.d2lite.a.b``. Nothing here imports the rest of elsa_det.
"""

__version__ = "0.1.0"
