//! What the branches of a step have in common.

use crate::backend::Backend;

/// The tokens after the first block's self-attention, `[tokens, dim]`, which the branches of a step have in common: branches
/// differ in their text, and the cross-attention that follows is the first that reads it.
///
/// It is for forwards of one network with the same latent, time and kind of attention.
pub enum Prefix<B: Backend> {
    /// A forward computes these tokens for itself, and keeps nothing.
    Own,
    /// The next forward computes these tokens, and keeps them for the one after it.
    Wanted,
    /// The next forward begins with these tokens, and frees them when it has read them.
    Kept(B::Tensor),
}

impl<B: Backend> Prefix<B> {
    /// Keeps tokens that were just computed, if they are wanted.
    pub(super) fn offer(&mut self, tokens: &B::Tensor) {
        if matches!(self, Self::Wanted) {
            *self = Self::Kept(tokens.clone());
        }
    }

    /// Takes the tokens out, if any are kept.
    pub(super) fn take(&mut self) -> Option<B::Tensor> {
        match std::mem::replace(self, Self::Own) {
            Self::Kept(tokens) => Some(tokens),
            other => {
                *self = other;
                None
            }
        }
    }
}
