//! Where the values of a KV page lie. The layout is written in [`PageSpec`]; this is its arithmetic.

use crate::{BLOCK_POSITIONS, PAGE_POSITIONS, PageSpec};

impl PageSpec {
    /// f16 values of one page; `None` on overflow.
    pub fn page_values(&self) -> Option<usize> {
        self.kv_heads.checked_mul(self.head_dim)?.checked_mul(2 * PAGE_POSITIONS)
    }

    /// f16 values of one KV head within a page.
    pub fn head_values(&self) -> usize {
        2 * PAGE_POSITIONS * self.head_dim
    }

    /// First value of K block `block` of a KV head: `[head_dim, 64]`. V of the block, `[64, head_dim]`, follows it.
    pub fn k_block(&self, kv_head: usize, block: usize) -> usize {
        kv_head * self.head_values() + block * 2 * BLOCK_POSITIONS * self.head_dim
    }

    /// Index of K of position `at` (0..256) within a page, dimension `dim`.
    pub fn k_at(&self, kv_head: usize, at: usize, dim: usize) -> usize {
        self.k_block(kv_head, at / BLOCK_POSITIONS) + dim * BLOCK_POSITIONS + at % BLOCK_POSITIONS
    }

    /// Index of V of position `at` (0..256) within a page, dimension 0; the other dimensions follow.
    pub fn v_at(&self, kv_head: usize, at: usize) -> usize {
        self.k_block(kv_head, at / BLOCK_POSITIONS) + (BLOCK_POSITIONS + at % BLOCK_POSITIONS) * self.head_dim
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k_and_v_of_all_heads_fill_a_page_exactly_once() {
        let spec = PageSpec { kv_heads: 3, head_dim: 5 };
        let mut seen = vec![0u8; spec.page_values().unwrap()];
        for head in 0..spec.kv_heads {
            for at in 0..PAGE_POSITIONS {
                for dim in 0..spec.head_dim {
                    seen[spec.k_at(head, at, dim)] += 1;
                    seen[spec.v_at(head, at) + dim] += 1;
                }
            }
        }
        assert!(seen.iter().all(|&n| n == 1));
        assert_eq!(spec.page_bytes(), seen.len() * 2);
    }
}
