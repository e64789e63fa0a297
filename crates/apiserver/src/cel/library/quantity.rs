//! Quantities: `quantity('500m').isLessThan(quantity('1'))`.

use cel::common::types::{INT_TYPE, STRING_TYPE};
use cel::objects::Opaque;
use cel::{DeclarationError, Env, Value};

use super::{Outcome, functions, int_of, opaque, text_of, unwrap, wrap};

const QUANTITY: &str = "kubernetes.Quantity";
const BILLION: i128 = 1_000_000_000;

/// In billionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Amount(i128);

impl Opaque for Amount {
    fn runtime_type_name(&self) -> &str {
        QUANTITY
    }
}

/// Adds the functions.
pub fn add(env: &mut Env) -> Result<(), DeclarationError> {
    env.add_type(opaque(QUANTITY))?;
    functions! { env,
        "quantity", (STRING_TYPE) => |a| parse(&a[0]).map(wrap);
        "isQuantity", (STRING_TYPE) => |a| Ok(Value::Bool(parse(&a[0]).is_ok()));
        "sign" on opaque(QUANTITY), () => |a| Ok(Value::Int(if of(&a[0])?.0 == 0 { 0 } else if of(&a[0])?.0 < 0 { -1 } else { 1 }));
        "isInteger" on opaque(QUANTITY), () => |a| Ok(Value::Bool(whole(of(&a[0])?).is_some()));
        "asInteger" on opaque(QUANTITY), () => |a| {
            whole(of(&a[0])?).map(Value::Int).ok_or_else(|| "cannot convert value to integer".to_owned())
        };
        "asApproximateFloat" on opaque(QUANTITY), () => |a| Ok(Value::Float(of(&a[0])?.0 as f64 / BILLION as f64));
        "isLessThan" on opaque(QUANTITY), (opaque(QUANTITY)) => |a| Ok(Value::Bool(of(&a[0])? < of(&a[1])?));
        "isGreaterThan" on opaque(QUANTITY), (opaque(QUANTITY)) => |a| Ok(Value::Bool(of(&a[0])? > of(&a[1])?));
        "compareTo" on opaque(QUANTITY), (opaque(QUANTITY)) => |a| Ok(Value::Int(of(&a[0])?.cmp(&of(&a[1])?) as i64));
        "add" on opaque(QUANTITY), (opaque(QUANTITY)) => |a| sum(&a[0], of(&a[1])?.0);
        "add" on opaque(QUANTITY), (INT_TYPE) => |a| sum(&a[0], i128::from(int_of(&a[1])?) * BILLION);
        "sub" on opaque(QUANTITY), (opaque(QUANTITY)) => |a| sum(&a[0], -of(&a[1])?.0);
        "sub" on opaque(QUANTITY), (INT_TYPE) => |a| sum(&a[0], -i128::from(int_of(&a[1])?) * BILLION);
    }
    Ok(())
}

fn parse(text: &Value) -> Result<Amount, String> {
    schema::quantity::nanos(text_of(text)?).map(Amount).map_err(|e| e.to_string())
}

fn of(value: &Value) -> Result<Amount, String> {
    unwrap::<Amount>(value).copied()
}

fn whole(amount: Amount) -> Option<i64> {
    (amount.0 % BILLION == 0).then(|| i64::try_from(amount.0 / BILLION).ok()).flatten()
}

fn sum(a: &Value, b: i128) -> Outcome {
    Ok(wrap(Amount(of(a)?.0.saturating_add(b))))
}
