//! Model files: from any layout on disk to the model's own (official) tensor names.
//!
//! A [`Weights`] is one component (DiT, `umT5`, CLIP or VAE) whose tensors have all been checked by name, shape and
//! type; it hands them out one at a time, straight from the memory-mapped file. The backend decides where a weight then
//! lives and what precision it gets.

mod ahead;
mod cache;
mod carried;
mod check;
mod coded;
mod config;
mod container;
mod content;
mod distilled;
mod dtype;
pub mod e4m3;
mod encoding;
mod expand;
mod experts;
mod fault;
mod find;
mod gguf;
mod identify;
mod identity;
mod layouts;
mod lora;
mod mapped;
mod matrix;
mod model;
mod names;
mod open;
mod refusals;
pub(crate) mod rounding;
mod rows;
pub(crate) mod safetensors;
mod sentencepiece;
mod shards;
mod source;
mod stored;
mod summary;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod torch;
mod vocabulary;

pub use ahead::{Places, ReadAhead};
pub use animd_protocol::dims::{ClipConfig, DitConfig, T5Config, VaeConfig};
pub use animd_protocol::recipe::Component;
pub use cache::{Cache, CachedCopy, Lease, Prepared, State as CopyState, prepare};
pub use carried::read_vocabulary;
pub(crate) use distilled::{path_says_distilled, says_distilled};
pub use dtype::DType;
pub use encoding::{Encoding, Granularity, Packing};
pub(crate) use experts::{pattern, released_folder, said_by, without_noise};
pub use fault::on_fault;
pub(crate) use find::{is_model, is_there, snapshot, title};
#[cfg(all(test, feature = "cuda"))]
pub(crate) use gguf::PACKINGS;
pub use identify::{Identified, Kind as IdentifiedKind, identify};
pub(crate) use identity::{FNV_BASIS, Stamp, fnv1a};
pub use layouts::Layout;
#[cfg(test)]
pub(crate) use lora::made_up as made_up_lora;
pub use lora::{Adapter, Lora, LowRank, Merged, RoundedAgain, Strength};
pub use mapped::unchanged;
pub use matrix::{HostTensor, Matrix};
pub use model::Model;
pub(crate) use model::{Places as PartPlaces, is_lone_expert, model_file, tokenizer, transformers};
pub(crate) use names::EMBEDDING;
pub use open::{open_clip, open_dit, open_expert, open_t5, open_vae};
pub use rows::RowTable;
pub(crate) use shards::{Group, groups, index_of, is_numbered, of_file as shards_of};
pub use source::{WeightSource, Weights};
pub(crate) use stored::{text_bytes, text_file};
pub use summary::Summary;
pub use vocabulary::{Kind as PieceKind, Piece, Vocabulary};

/// Returns the files of a component at a path; none where they cannot be found.
pub(crate) fn files(path: &std::path::Path, component: Component) -> Vec<std::path::PathBuf> {
    find::files(path, component).unwrap_or_default().into_iter().filter(|file| file.is_file()).collect()
}
