//! [`Chunk`]: how the prompts of one step share its tokens.

/// The prompt tokens of one forward, handed out from the oldest prompt to the newest.
///
/// The oldest one gets what the others do not need, and half at the least; the others take the rest in turn.
#[derive(Debug)]
pub(super) struct Chunk {
    size: usize,
    left: usize,
    /// Tokens of the prompts that have not been asked yet.
    behind: usize,
}

impl Chunk {
    /// `size` tokens for prompts that lack `prompts` tokens in all.
    pub(super) const fn new(size: usize, prompts: usize) -> Self {
        Self { size, left: size, behind: prompts }
    }

    /// How many tokens the next prompt, which lacks `own`, gets.
    pub(super) fn take(&mut self, own: usize) -> usize {
        self.behind -= own;
        let share = if self.left == self.size {
            self.size.div_ceil(2).max(self.size.saturating_sub(self.behind))
        } else {
            self.left
        };
        let taken = own.min(share);
        self.left -= taken;
        taken
    }

    /// Tokens handed out.
    pub(super) const fn taken(&self) -> usize {
        self.size - self.left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shares(size: usize, prompts: &[usize]) -> Vec<usize> {
        let mut chunk = Chunk::new(size, prompts.iter().sum());
        let shares: Vec<usize> = prompts.iter().map(|&own| chunk.take(own)).collect();
        assert_eq!(chunk.taken(), shares.iter().sum::<usize>());
        shares
    }

    #[test]
    fn one_prompt_has_the_whole_chunk_exactly() {
        assert_eq!(shares(100, &[700]), [100]);
        assert_eq!(shares(100, &[7]), [7]);
        // Answers in the making lack nothing.
        assert_eq!(shares(100, &[0, 0, 700, 0]), [0, 0, 100, 0]);
    }

    #[test]
    fn a_short_prompt_does_not_wait_for_a_long_one() {
        assert_eq!(shares(100, &[700, 5]), [95, 5]);
        assert_eq!(shares(100, &[700, 300, 5]), [50, 50, 0]);
        assert_eq!(shares(1, &[700, 5]), [1, 0]);
    }

    proptest! {
        #[test]
        fn the_chunk_is_used_up_if_it_can_be(size in 1usize..50, prompts in prop::collection::vec(0usize..60, 0..9)) {
            let shares = shares(size, &prompts);
            let (given, asked): (usize, usize) = (shares.iter().sum(), prompts.iter().sum());
            prop_assert_eq!(given, size.min(asked));
            prop_assert!(shares.iter().zip(&prompts).all(|(share, own)| share <= own));
            let oldest = prompts.iter().position(|&own| own > 0);
            prop_assert!(oldest.is_none_or(|i| shares[i] >= prompts[i].min(size.div_ceil(2))));
        }
    }
}
