//! Formats of text: `format.dns1123Label().validate(self.metadata.name)`.

use cel::common::types::STRING_TYPE;
use cel::objects::{Opaque, OptionalValue};
use cel::{DeclarationError, Env, Value};

use super::{functions, opaque, text_of, unwrap, wrap};
use crate::cel::convert::string;
use crate::names;

const FORMAT: &str = "kubernetes.NamedFormat";

/// Adds the functions.
pub fn add(env: &mut Env) -> Result<(), DeclarationError> {
    env.add_type(opaque(FORMAT))?;
    functions! { env,
        "format.dns1123Label", () => |_| Ok(wrap(Format::Label));
        "format.dns1123Subdomain", () => |_| Ok(wrap(Format::Subdomain));
        "format.dns1035Label", () => |_| Ok(wrap(Format::Dns1035));
        "format.qualifiedName", () => |_| Ok(wrap(Format::Qualified));
        "format.labelValue", () => |_| Ok(wrap(Format::LabelValue));
        "format.uuid", () => |_| Ok(wrap(Format::Uuid));
        "format.named", (STRING_TYPE) => |a| Ok(named(text_of(&a[0])?));
        "validate" on opaque(FORMAT), (STRING_TYPE) => |a| {
            let wrong = unwrap::<Format>(&a[0])?.offences(text_of(&a[1])?);
            let list = || Value::List(wrong.iter().map(|w| string(w)).collect::<Vec<_>>().into());
            Ok(wrap(if wrong.is_empty() { OptionalValue::none() } else { OptionalValue::of(list()) }))
        };
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Label,
    Subdomain,
    Dns1035,
    Qualified,
    LabelValue,
    Uuid,
}

impl Opaque for Format {
    fn runtime_type_name(&self) -> &str {
        FORMAT
    }
}

impl Format {
    fn offences(self, text: &str) -> Vec<String> {
        let checked = match self {
            Format::Label => names::dns1123_label(text),
            Format::Subdomain => names::dns1123_subdomain(text),
            Format::Dns1035 => names::dns1035_label(text),
            Format::Qualified => names::qualified_name(text),
            Format::LabelValue => names::label_value(text),
            Format::Uuid => uuid::Uuid::parse_str(text)
                .map(drop)
                .map_err(|_| vec!["does not match the UUID format".into()]),
        };
        checked.err().unwrap_or_default()
    }
}

fn named(name: &str) -> Value {
    let format = match name {
        "dns1123Label" => Format::Label,
        "dns1123Subdomain" => Format::Subdomain,
        "dns1035Label" => Format::Dns1035,
        "qualifiedName" => Format::Qualified,
        "labelValue" => Format::LabelValue,
        "uuid" => Format::Uuid,
        _ => return wrap(OptionalValue::none()),
    };
    wrap(OptionalValue::of(wrap(format)))
}
