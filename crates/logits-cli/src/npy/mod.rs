//! `.npy` files, read and written in parts that fit into memory.

mod header;
mod reader;
mod selection;
mod writer;

pub(crate) use reader::{Float, Reader};
pub(crate) use selection::Selection;
pub(crate) use writer::Writer;
