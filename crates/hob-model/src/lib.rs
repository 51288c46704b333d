//! Config, weights, layout, one file per architecture, the runner that loops over layers, and what sequences remember.
//!
//! A [`Model`] turns batches of tokens into logits on any device that implements `hob_compute::Compute`.
//! It must not know requests, sampling policy, HTTP or instruction sets; nothing outside this crate matches on an
//! architecture.
#![forbid(unsafe_code)]

mod arch;
mod batch;
mod blocks;
pub mod config;
pub mod disk;
mod error;
mod footprint;
mod identity;
mod info;
mod layout;
mod needs;
pub mod noise;
mod placement;
mod rope;
mod runner;
mod source;
mod stacked;
mod state;

pub use arch::{LayerState, known_architectures};
pub use batch::{Batch, Row, SeqId};
pub use config::{
    CompressedConfig, Config, DeltaConfig, DeltaStored, EntryConfig, IndexConfig, LatentConfig, LayerConfig,
    LongFactors, Mixer, OutputGate, RopeConfig, RopeScaling, SsmConfig, StreamConfig,
};
pub use error::{ModelError, Result};
pub use footprint::{Footprint, Line};
pub use info::ModelInfo;
pub use layout::{KvLayout, KvPair, Layout};
pub use needs::{Group, Naming, Section, Slot, Values};
pub use placement::{Crossing, Placement};
pub use runner::{Image, MemoryUse, Model};
pub use source::{FileTensors, TensorSource};
pub use stacked::{Part, Stacked, Stored};
