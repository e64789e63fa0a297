//! The generator of the schema table.
//!
//! Three sources, each the best witness of its part, are joined and must agree:
//!
//! * `data/go-types.txt`, the reflection data of a released kubectl (see [`elf`]): Go struct names, field order, JSON
//!   names, protobuf numbers, pointers, patch strategies: what a real client puts on the wire;
//! * the sources of the crate `k8s-pb`: the `+listType`, `+listMapKey`, `+structType` and `+default` markers, and all
//!   of the apiextensions group, which kubectl does not link;
//! * the sources of the crate `k8s-openapi`: descriptions, required fields.
//!
//! Output, checked in: `crates/schema/data/table.txt` and the deflated `descriptions.bin`. A test regenerates both.

pub mod apiextensions;
pub mod elf;
pub mod emit;
pub mod gotypes;
pub mod openapi;
pub mod pb;
pub mod sources;
