"""Before training: register images, check the registration, split cores, and compute patch features."""

from sigmma_sc.pp.alignment import register
from sigmma_sc.pp.cores import split_cores
from sigmma_sc.pp.encode import encode_patches
from sigmma_sc.pp.registration import check_registration

__all__ = ["check_registration", "encode_patches", "register", "split_cores"]
