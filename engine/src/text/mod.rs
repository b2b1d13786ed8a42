//! Prompts: cleaned as the model's training did, then cut into tokens.

mod clean;
mod codepages;
mod html;
mod mojibake;
mod tokenizer;

pub use clean::clean;
pub use tokenizer::{MAX_TOKENS, Tokenizer, Tokens};
