//! Kubernetes' functions for CEL (<https://kubernetes.io/docs/reference/using-api/cel/#kubernetes-list-library>).

mod authorizer;
mod format;
mod lists;
mod network;
mod quantity;
mod text;

use cel::common::types::Type;
use cel::common::value::{CowVal, Val};
use cel::objects::Opaque;
use cel::{DeclarationError, Env, ExecutionError, Value, extensions};
use std::sync::Arc;

pub use authorizer::variables as authorizers;

/// Adds all of them.
pub fn add(env: &mut Env) -> Result<(), DeclarationError> {
    env.add_extension(extensions::strings)?;
    lists::add(env)?;
    text::add(env)?;
    format::add(env)?;
    quantity::add(env)?;
    network::add(env)?;
    authorizer::add(env)
}

/// The outcome of a function: a value, or a sentence.
type Outcome = Result<Value, String>;

/// The arguments of an overload as values; its outcome as the evaluator takes it.
fn adapt<'b, 'v>(
    args: &[CowVal<'b, 'v>],
    f: impl Fn(&[Value]) -> Outcome,
) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let values = args.iter().map(|a| Value::try_from(a.as_ref())).collect::<Result<Vec<_>, _>>()?;
    let value = f(&values).map_err(|why| ExecutionError::function_error("", why))?;
    let boxed: Box<dyn Val> = value.try_into()?;
    Ok(CowVal::Owned(boxed))
}

/// Declares functions: `"name" (types of arguments) => function of values`; with `target.` a method.
macro_rules! functions {
    ($env:ident, $($name:literal $(on $target:expr)? , ($($arg:expr),*) => $f:expr;)*) => {
        $({
            fn call<'b, 'v>(
                args: Vec<::cel::common::value::CowVal<'b, 'v>>,
            ) -> Result<::cel::common::value::CowVal<'b, 'v>, ::cel::ExecutionError> {
                $crate::cel::library::adapt(&args, $f)
            }
            let args: Vec<::cel::common::types::Type> = vec![$($arg),*];
            let id = format!(concat!($name, "({:?})"), args.iter().map(|t| t.name().to_owned()).collect::<Vec<_>>());
            functions!(@add $env, $name, id, args, call $(, $target)?);
        })*
    };
    (@add $env:ident, $name:literal, $id:ident, $args:ident, $call:ident) => {
        $env.add_overload($name, &$id, $args, $call)?;
    };
    (@add $env:ident, $name:literal, $id:ident, $args:ident, $call:ident, $target:expr) => {
        let target: ::cel::common::types::Type = $target;
        let id = format!("{}.{}", target.name(), $id);
        $env.add_member_overload($name, &id, target, $args, $call)?;
    };
}
use functions;

fn opaque(name: &str) -> Type {
    Type::new_opaque_type(name.to_owned())
}

/// An opaque argument of a known sort.
fn unwrap<T: Opaque>(value: &Value) -> Result<&T, String> {
    match value {
        Value::Opaque(inner) => inner.downcast_ref::<T>().ok_or_else(|| "no such overload".to_owned()),
        _ => Err("no such overload".to_owned()),
    }
}

fn wrap(value: impl Opaque) -> Value {
    Value::Opaque(Arc::new(value))
}

fn text_of(value: &Value) -> Result<&str, String> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err("no such overload".to_owned()),
    }
}

fn int_of(value: &Value) -> Result<i64, String> {
    match value {
        Value::Int(number) => Ok(*number),
        _ => Err("no such overload".to_owned()),
    }
}

fn list_of(value: &Value) -> Result<&[Value], String> {
    match value {
        Value::List(items) => Ok(items),
        _ => Err("no such overload".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use crate::cel::{Budget, Value, compile};

    fn eval(source: &str) -> Result<Value, String> {
        compile(source)?.evaluate(&[], &mut Budget::default())
    }

    #[test]
    fn functions() {
        for source in [
            "[1, 2, 2].isSorted() && !['b', 'a'].isSorted()",
            "[1, 2].sum() == 3 && [1.5, 1.0].sum() == 2.5 && [3, 1].min() == 1 && [3, 1].max() == 3",
            "[1, 2, 1].indexOf(1) == 0 && [1, 2, 1].lastIndexOf(1) == 2 && ['a'].indexOf('b') == -1",
            "'abcb'.indexOf('b') == 1 && 'abcb'.lastIndexOf('b') == 3",
            "sets.contains([1, 2], [2]) && sets.intersects([1], [1, 2]) && sets.equivalent([1, 1], [1])",
            "'abc 123'.find('[0-9]+') == '123' && 'a1b2'.findAll('[0-9]') == ['1', '2']",
            "'a1b2'.findAll('[0-9]', 1) == ['1']",
            "'A-b'.lowerAscii() == 'a-b' && 'a,b'.split(',').join('.') == 'a.b' && ' x '.trim() == 'x'",
            "'hello'.replace('l', 'L') == 'heLLo' && 'hello'.substring(1, 3) == 'el' && 'x'.upperAscii() == 'X'",
            "isURL('https://a.example:80/x') && !isURL('../x') && url('https://u@a.example:80/p?q=1&q=2').getHost() == 'a.example:80'",
            "url('https://[::1]:80/p%20q').getHostname() == '::1' && url('https://a:80/').getPort() == '80'",
            "url('https://a/p').getScheme() == 'https' && url('https://a/p%20q').getEscapedPath() == '/p%20q'",
            "url('https://a/?k=a&k=b').getQuery() == {'k': ['a', 'b']}",
            "isQuantity('1Gi') && !isQuantity('1Q') && quantity('500m').isLessThan(quantity('1'))",
            "quantity('1').add(quantity('500m')).compareTo(quantity('1500m')) == 0 && quantity('5').asInteger() == 5",
            "quantity('1k').isInteger() && quantity('-1').sign() == -1 && quantity('3').sub(1).isGreaterThan(quantity('1'))",
            "quantity('1.5').asApproximateFloat() == 1.5 && quantity('1000m') == quantity('1')",
            "isIP('10.0.0.1') && !isIP('10.0.0') && ip('10.0.0.1').family() == 4 && ip('::1').isLoopback()",
            "ip.isCanonical('127.0.0.1') && !ip.isCanonical('::0001') && string(ip('::1')) == '::1'",
            "cidr('10.0.0.0/8').containsIP('10.1.2.3') && !cidr('10.0.0.0/8').containsIP(ip('11.0.0.0'))",
            "cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && cidr('10.1.2.3/8').masked() == cidr('10.0.0.0/8')",
            "cidr('10.0.0.0/8').prefixLength() == 8 && cidr('10.0.0.0/8').ip() == ip('10.0.0.0') && isCIDR('::/0')",
            "!format.dns1123Label().validate('ok').hasValue() && format.dns1123Label().validate('No').hasValue()",
            "format.named('uuid').value().validate('x').value().size() == 1 && !format.named('odd').hasValue()",
            "timestamp('2026-01-01T00:00:00Z') < timestamp('2026-01-02T00:00:00Z') && duration('1h') > duration('1m')",
        ] {
            assert_eq!(eval(source), Ok(Value::Bool(true)), "{source}");
        }
        for source in
            ["url('::')", "ip('x')", "cidr('1')", "quantity('x')", "[].min()", "quantity('1.5').asInteger()"]
        {
            assert!(eval(source).is_err(), "{source}");
        }
    }
}
