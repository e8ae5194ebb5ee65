"""Before training: check the registration, and compute patch features."""

from sigmma_sc.pp.encode import encode_patches
from sigmma_sc.pp.registration import check_registration

__all__ = ["check_registration", "encode_patches"]
