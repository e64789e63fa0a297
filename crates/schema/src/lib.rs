//! One table of Kubernetes' types drives everything that depends on their shape: protobuf decoding, strict and lenient
//! field validation, the patch types, server-side apply and OpenAPI. No IO happens here.
//!
//! The table of the built-in types is generated (crate `schema-gen`) and carried as text; it is parsed once, on first
//! use, in 1.5 ms into about 1 MB. Every function takes a [`Type`], a handle into a [`Table`], so that a table made from a
//! CustomResourceDefinition serves as well.

pub mod apply;
pub mod canonical;
mod custom;
mod descriptions;
pub mod json;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod quantity;
mod table;
mod text;
mod time;
pub mod validate;

pub use table::{Field, GROUPS, Kind, ListType, Strategy, Table, Type};
