import numpy as np
import pytest

from sigmma_sc.errors import SetupError
from sigmma_sc.infer.interval import calibration_blocks, half_widths, interval_blocks, require_level
from sigmma_sc.infer.reference import Reference


class TestHalfWidths:
    def test_by_hand(self):
        """Four blocks of weight 1 and the new one: 60 % of five is what three blocks hold."""
        residuals = np.array([[-1.0, 1], [2, 1], [3, 7], [-4, 1], [5, 1]])
        blocks = np.array([0, 1, 2, 3, 3])
        # First gene: |r| of weight 1, 1, 1, 1/2, 1/2 and infinity of weight 1.
        np.testing.assert_array_equal(half_widths(residuals, blocks, 0.6), [3, 1])
        np.testing.assert_array_equal(half_widths(residuals, blocks, 0.65), [4, 7])
        np.testing.assert_array_equal(half_widths(residuals, blocks, 0.8), [5, 7])
        np.testing.assert_array_equal(half_widths(residuals, blocks, 0.81), [np.inf, np.inf])

    @pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
    def test_covers_tiles_of_a_new_block_where_tiles_alone_would_not(self, level):
        """Residuals that a block shares: as many independent residuals as blocks, whatever their number of tiles."""
        rng = np.random.default_rng(0)
        n_genes, n_blocks = 3000, 11
        sizes = rng.integers(1, 9, n_blocks + 1)
        block = np.repeat(np.arange(n_blocks + 1), sizes)
        residuals = rng.normal(size=(n_blocks + 1, n_genes))[block] + 0.1 * rng.normal(size=(len(block), n_genes))
        new = block == n_blocks
        by_block = half_widths(residuals[~new], block[~new], level)
        by_tile = half_widths(residuals[~new], np.arange((~new).sum()), level)
        covered = (np.abs(residuals[new]) <= by_block).mean()
        assert level - 0.02 < covered < level + 1 / (n_blocks + 1) + 0.02
        assert (np.abs(residuals[new]) <= by_tile).mean() < covered


class TestBlocks:
    def test_the_largest_squares_of_which_there_are_enough(self):
        x, y = np.meshgrid(np.arange(24), np.arange(18))
        position = np.column_stack([x.ravel(), y.ravel()]).astype(np.float32)
        blocks = calibration_blocks(position, np.zeros(len(position), int))
        assert len(np.unique(blocks)) == 6 * 5  # of 4 × 4 tiles; of 6 × 6 there would be 12
        assert len(np.unique(blocks[(x.ravel() < 4) & (y.ravel() < 4)])) == 1

    def test_slides_where_there_are_enough(self):
        slide = np.repeat(np.arange(20), 3)
        blocks = calibration_blocks(np.random.default_rng(0).uniform(0, 30, (60, 2)).astype(np.float32), slide)
        np.testing.assert_array_equal(blocks, slide)

    def test_the_smallest_squares_hold_neighbours(self):
        position = np.array([[0, 0], [1, 1], [2, 0]], np.float32)
        np.testing.assert_array_equal(calibration_blocks(position, np.zeros(3, int)), [0, 0, 1])

    def test_too_few_are_refused(self):
        require_level(0.9, 9)
        require_level(0.5, 1)
        with pytest.raises(SetupError, match=r"interval=0.9 needs 9 .*, the model has 8\. Ask for a smaller interval"):
            require_level(0.9, 8)
        position = np.random.default_rng(0).uniform(0, 4, (40, 2)).astype(np.float32)
        no_tiles = np.zeros(40, int)
        arrays = (np.zeros((40, 1), np.float16), {}, {}, np.zeros((40, 1), np.float16), no_tiles, no_tiles)
        reference = Reference(["g"], 1.0, *arrays, np.arange(40) < 20, position, np.zeros((40, 6), np.float32))
        with pytest.raises(SetupError, match=r"interval=0.95 needs 19 spatial blocks .*, the model has 4\."):
            interval_blocks(reference, 0.95)
