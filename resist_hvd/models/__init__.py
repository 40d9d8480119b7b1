"""Pre-activation residual networks, whole and as a worker's sub-network on flat storage."""

from resist_hvd.models.architecture import Architecture, ModelSettings
from resist_hvd.models.resnet import ResNet
from resist_hvd.models.subnet import SubNet

__all__ = ["Architecture", "ModelSettings", "ResNet", "SubNet"]
