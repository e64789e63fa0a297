//! Lists and sets.

use std::cmp::Ordering;

use cel::common::types::{DYN_TYPE, LIST_TYPE};
use cel::{DeclarationError, Env, Value};

use super::{Outcome, functions, list_of};

/// Adds the functions.
pub fn add(env: &mut Env) -> Result<(), DeclarationError> {
    functions! { env,
        "isSorted" on LIST_TYPE, () => |a| {
            let pairs = list_of(&a[0])?.windows(2).map(|w| order(&w[0], &w[1]));
            let orders = pairs.collect::<Result<Vec<_>, _>>()?;
            Ok(Value::Bool(orders.iter().all(|o| o.is_le())))
        };
        "sum" on LIST_TYPE, () => |a| list_of(&a[0])?.iter().try_fold(None, add_up).map(|s| s.unwrap_or(Value::Int(0)));
        "min" on LIST_TYPE, () => |a| extreme(list_of(&a[0])?, Ordering::Less, "min");
        "max" on LIST_TYPE, () => |a| extreme(list_of(&a[0])?, Ordering::Greater, "max");
        "indexOf" on LIST_TYPE, (DYN_TYPE) => |a| Ok(index(list_of(&a[0])?.iter().position(|v| *v == a[1])));
        "lastIndexOf" on LIST_TYPE, (DYN_TYPE) => |a| Ok(index(list_of(&a[0])?.iter().rposition(|v| *v == a[1])));
        "sets.contains", (LIST_TYPE, LIST_TYPE) => |a| Ok(Value::Bool(within(list_of(&a[1])?, list_of(&a[0])?)));
        "sets.equivalent", (LIST_TYPE, LIST_TYPE) => |a| {
            let (one, two) = (list_of(&a[0])?, list_of(&a[1])?);
            Ok(Value::Bool(within(one, two) && within(two, one)))
        };
        "sets.intersects", (LIST_TYPE, LIST_TYPE) => |a| {
            let two = list_of(&a[1])?;
            Ok(Value::Bool(list_of(&a[0])?.iter().any(|v| two.contains(v))))
        };
    }
    Ok(())
}

fn within(part: &[Value], whole: &[Value]) -> bool {
    part.iter().all(|v| whole.contains(v))
}

fn index(found: Option<usize>) -> Value {
    Value::Int(found.and_then(|i| i64::try_from(i).ok()).unwrap_or(-1))
}

fn order(a: &Value, b: &Value) -> Result<Ordering, String> {
    a.partial_cmp(b).ok_or_else(|| "no such overload".to_owned())
}

fn add_up(sum: Option<Value>, next: &Value) -> Result<Option<Value>, String> {
    let Some(sum) = sum else { return Ok(Some(next.clone())) };
    Ok(Some(match (sum, next) {
        (Value::Int(a), Value::Int(b)) => Value::Int(a.checked_add(*b).ok_or("integer overflow")?),
        (Value::UInt(a), Value::UInt(b)) => {
            Value::UInt(a.checked_add(*b).ok_or("unsigned integer overflow")?)
        }
        (Value::Float(a), Value::Float(b)) => Value::Float(a + b),
        (Value::Duration(a), Value::Duration(b)) => Value::Duration(a + *b),
        _ => return Err("no such overload".to_owned()),
    }))
}

fn extreme(items: &[Value], wanted: Ordering, name: &str) -> Outcome {
    let (first, rest) = items.split_first().ok_or_else(|| format!("{name} called on empty list"))?;
    let best = rest
        .iter()
        .try_fold(first, |best, v| Ok::<_, String>(if order(v, best)? == wanted { v } else { best }))?;
    Ok(best.clone())
}
