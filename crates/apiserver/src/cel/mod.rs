//! CEL, as rules of definitions, policies and match conditions use it: expressions compiled once, evaluated within a
//! budget (<https://kubernetes.io/docs/reference/using-api/cel/>).
//!
//! The language is the crate `cel`'s; Kubernetes' functions stand in [`library`]. Its evaluator counts nothing, so each
//! loop of a compiled expression asks [`tick`] whether it may go on.

pub mod convert;
mod library;

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, operators};
use cel::common::types::CelBool;
use cel::common::value::CowVal;
use cel::{Context, Env, ExecutionError};
use parking_lot::Mutex;

pub use cel::Value;
pub use library::authorizers;

/// Longer expressions are not read.
const LONGEST: usize = 16 << 10;
/// Turns of loops that one expression may take.
const PER_CALL: u64 = 1_000_000;
/// Turns of loops that all expressions about one write may take.
const PER_WRITE: u64 = 2_000_000;
/// Expressions nested deeper are not read.
const DEEPEST: u16 = 64;
/// Expressions nested no deeper are evaluated on the caller's stack.
const SHALLOW: usize = 16;
/// What the parser and the evaluator may need for the deepest, unoptimised.
const STACK: usize = 64 << 20;
/// Compiled expressions are kept by their text, so many.
const KEPT: usize = 4096;
/// Types and libraries, which stand where variables may.
const WORDS: [&str; 19] = [
    "bool",
    "bytes",
    "cel",
    "cidr",
    "double",
    "duration",
    "dyn",
    "format",
    "int",
    "ip",
    "list",
    "map",
    "math",
    "null_type",
    "optional",
    "sets",
    "string",
    "timestamp",
    "uint",
];
/// The function that loops ask; no expression can name it.
const TICK: &str = "@tick";

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    let added = library::add(&mut env).and_then(|()| env.add_overload(TICK, "tick", Vec::new(), tick));
    if let Err(error) = added {
        tracing::error!(%error, "a function of CEL is declared twice");
    }
    Arc::new(env)
});

thread_local! {
    static TURNS: Cell<u64> = const { Cell::new(0) };
}

fn tick<'b, 'v>(_: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    TURNS.with(|turns| match turns.get() {
        0 => Err(ExecutionError::function_error("loop", "operation cancelled: actual cost limit exceeded")),
        left => {
            turns.set(left - 1);
            Ok(CowVal::owned(CelBool::from(true)))
        }
    })
}

/// What the expressions about one write may still cost.
#[derive(Debug)]
pub struct Budget(u64);

impl Default for Budget {
    fn default() -> Self {
        Budget(PER_WRITE)
    }
}

impl Budget {
    /// Nothing is left.
    pub fn is_spent(&self) -> bool {
        self.0 == 0
    }
}

/// A compiled expression.
#[derive(Debug)]
pub struct Program {
    expression: IdedExpr,
    variables: Vec<String>,
    depth: usize,
}

impl Program {
    /// Whether the expression names a variable.
    pub fn names(&self, variable: &str) -> bool {
        self.variables.iter().any(|v| v == variable)
    }

    /// The variables it names.
    pub fn variables(&self) -> &[String] {
        &self.variables
    }

    /// The value of the expression.
    ///
    /// # Errors
    /// Why there is none, as a sentence.
    pub fn evaluate(&self, variables: &[(&str, &Value)], budget: &mut Budget) -> Result<Value, String> {
        let allowed = budget.0.min(PER_CALL);
        let evaluate = || {
            let mut context = Context::with_env(ENV.clone());
            for (name, value) in variables {
                context.add_variable_from_value(*name, (*value).clone());
            }
            TURNS.with(|turns| turns.set(allowed));
            let result = context.resolve(&self.expression).map_err(|error| sentence(&error));
            (result, TURNS.with(Cell::get))
        };
        let (result, left) = if self.depth > SHALLOW { roomy(evaluate)? } else { evaluate() };
        budget.0 -= allowed - left;
        result
    }

    /// The value of an expression that must be true or false.
    ///
    /// # Errors
    /// As [`Program::evaluate`], and for other values.
    pub fn holds(&self, variables: &[(&str, &Value)], budget: &mut Budget) -> Result<bool, String> {
        match self.evaluate(variables, budget)? {
            Value::Bool(holds) => Ok(holds),
            other => Err(format!("cel expression evaluated to {}, not to a bool", other.type_of())),
        }
    }

    /// The value of an expression that must be text.
    ///
    /// # Errors
    /// As [`Program::evaluate`], and for other values.
    pub fn text(&self, variables: &[(&str, &Value)], budget: &mut Budget) -> Result<String, String> {
        match self.evaluate(variables, budget)? {
            Value::String(text) => Ok(text.to_string()),
            other => Err(format!("cel expression evaluated to {}, not to a string", other.type_of())),
        }
    }
}

/// In the words of upstream's evaluator, where people know them.
fn sentence(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
        ExecutionError::NoSuchOverload(_) => "no such overload".to_owned(),
        ExecutionError::UndeclaredReference(name) => format!("undeclared reference to '{name}'"),
        ExecutionError::DivisionByZero(_) => "division by zero".to_owned(),
        ExecutionError::FunctionError { message, .. } => message.clone(),
        other => other.to_string(),
    }
}

/// Compiles an expression, or finds it among those compiled before.
///
/// # Errors
/// What is wrong with it, as a sentence.
pub fn compile(source: &str) -> Result<Arc<Program>, String> {
    static COMPILED: LazyLock<Mutex<HashMap<String, Arc<Program>>>> = LazyLock::new(Mutex::default);
    if let Some(known) = COMPILED.lock().get(source) {
        return Ok(known.clone());
    }
    if source.len() > LONGEST {
        return Err(format!("expression exceeds {LONGEST} bytes"));
    }
    let program = Arc::new(parse(source)?);
    let mut compiled = COMPILED.lock();
    if compiled.len() >= KEPT {
        compiled.clear();
    }
    compiled.insert(source.to_owned(), program.clone());
    Ok(program)
}

/// Parses on a stack of its own: the parser descends into brackets and conditionals before it counts them, and a long
/// sum is a deep tree.
fn parse(source: &str) -> Result<Program, String> {
    if nesting(source) > DEEPEST {
        return Err(format!("expression nests deeper than {DEEPEST}"));
    }
    roomy(|| {
        let parsed = ENV.parser().max_recursion_depth(DEEPEST).parse(source);
        let mut expression = parsed.map_err(|errors| errors.to_string())?;
        let depth = depth(&mut expression);
        if depth > usize::from(DEEPEST) {
            return Err(format!("expression nests deeper than {DEEPEST}"));
        }
        let mut variables = Vec::new();
        free(&mut expression, &mut Vec::new(), &mut variables);
        bound(&mut expression);
        Ok(Program { expression, variables, depth })
    })?
}

/// Runs on a stack that holds the deepest expression.
fn roomy<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        let thread = thread.map_err(|e| format!("start a thread for an expression: {e}"))?;
        thread.join().map_err(|_| "the expression made the evaluator fail".to_owned())
    })
}

/// No fewer levels than the parser will descend.
fn nesting(source: &str) -> u16 {
    let (mut open, mut most, mut conditionals) = (0u16, 0u16, 0u16);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open = open.saturating_add(1),
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            b'?' => conditionals = conditionals.saturating_add(1),
            _ => {}
        }
        most = most.max(open);
    }
    most.max(conditionals)
}

/// The expressions that one is made of.
fn parts(expression: &mut IdedExpr) -> Vec<&mut IdedExpr> {
    match &mut expression.expr {
        Expr::Call(call) => call.target.iter_mut().map(|t| &mut **t).chain(&mut call.args).collect(),
        Expr::Comprehension(turns) => vec![
            &mut turns.iter_range,
            &mut turns.accu_init,
            &mut turns.loop_cond,
            &mut turns.loop_step,
            &mut turns.result,
        ],
        Expr::List(list) => list.elements.iter_mut().collect(),
        Expr::Map(map) => map.entries.iter_mut().flat_map(|e| entry(&mut e.expr)).collect(),
        Expr::Struct(fields) => fields.entries.iter_mut().flat_map(|e| entry(&mut e.expr)).collect(),
        Expr::Select(select) => vec![&mut select.operand],
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => Vec::new(),
    }
}

fn entry(entry: &mut EntryExpr) -> Vec<&mut IdedExpr> {
    match entry {
        EntryExpr::StructField(field) => vec![&mut field.value],
        EntryExpr::MapEntry(pair) => vec![&mut pair.key, &mut pair.value],
    }
}

fn depth(expression: &mut IdedExpr) -> usize {
    1 + parts(expression).into_iter().map(depth).max().unwrap_or(0)
}

/// The names that an expression takes from outside: not its loops' own, nor those of types and libraries.
fn free(expression: &mut IdedExpr, own: &mut Vec<String>, names: &mut Vec<String>) {
    if let Expr::Ident(name) = &expression.expr {
        let known = own.contains(name) || WORDS.contains(&name.as_str()) || names.contains(name);
        if !known {
            names.push(name.clone());
        }
        return;
    }
    let Expr::Comprehension(turns) = &mut expression.expr else {
        parts(expression).into_iter().for_each(|part| free(part, own, names));
        return;
    };
    for part in [&mut turns.iter_range, &mut turns.accu_init] {
        free(part, own, names);
    }
    let outer = own.len();
    own.extend([turns.iter_var.clone(), turns.accu_var.clone()]);
    own.extend(turns.iter_var2.clone());
    for part in [&mut turns.loop_cond, &mut turns.loop_step, &mut turns.result] {
        free(part, own, names);
    }
    own.truncate(outer);
}

/// Makes each loop ask before each turn.
fn bound(expression: &mut IdedExpr) {
    parts(expression).into_iter().for_each(bound);
    let Expr::Comprehension(turns) = &mut expression.expr else { return };
    let condition = std::mem::take(&mut turns.loop_cond);
    let id = condition.id;
    let call = |func_name: &str, args| IdedExpr {
        id,
        expr: Expr::Call(CallExpr { func_name: func_name.to_owned(), target: None, args }),
    };
    turns.loop_cond = call(operators::LOGICAL_AND, vec![call(TICK, Vec::new()), condition]);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn eval(source: &str) -> Result<Value, String> {
        let value = convert::dynamic(&json!({"a": 1, "list": [1, 2, 3], "name": "x", "labels": {"k": "v"}}));
        compile(source)?.evaluate(&[("self", &value)], &mut Budget::default())
    }

    #[test]
    fn expressions_over_json() {
        for (source, expected) in [
            ("self.a + 1 == 2", true),
            ("self.list.all(x, x > 0)", true),
            ("self.list.exists(x, x == 3) && !has(self.missing)", true),
            ("self.list.map(x, x * 2).sum() == 12", true),
            ("'k' in self.labels && self.labels['k'] == 'v'", true),
            ("self.?missing.orValue('d') == 'd'", true),
            ("self.list.filter(x, x > 5).size() == 0", true),
            ("self.name.matches('^[a-z]+$')", true),
            ("self.list.exists_one(x, x == 7)", false),
        ] {
            assert_eq!(eval(source), Ok(Value::Bool(expected)), "{source}");
        }
        let outside =
            compile("self.all(a, b.exists(c, c == a && sets.contains([d], e))) && type(self) == int")
                .unwrap();
        assert_eq!(outside.variables(), ["self", "b", "d", "e"]);
        assert_eq!(eval("self.missing").unwrap_err(), "no such key: missing");
        assert!(eval("1 +").unwrap_err().contains("Syntax error"), "{:?}", eval("1 +"));
    }

    #[test]
    fn loops_end() {
        let long = "[1,2,3,4,5,6,7,8,9,10]";
        let nest = (0..8).fold("true".to_owned(), |inner, i| format!("{long}.all(x{i}, {inner})"));
        let mut budget = Budget(20_000);
        let program = compile(&nest).unwrap();
        assert!(program.holds(&[], &mut budget).unwrap_err().contains("cost limit exceeded"));
        assert!(program.holds(&[], &mut budget).is_err());
        assert!(budget.is_spent());
    }

    #[test]
    fn deep_and_long_expressions_are_refused() {
        let deep = format!("{}1{}", "(".repeat(5000), ")".repeat(5000));
        assert!(compile(&deep).is_err());
        assert!(compile(&"1+".repeat(10_000)).unwrap_err().contains("exceeds"));
        assert!(compile(&format!("{}1", "true ? 1 : ".repeat(1400))).is_err());
        // The deepest that is read fits on the stack of whoever evaluates it.
        let lists = (0..usize::from(DEEPEST)).rev().map(|n| format!("{}1{}", "[".repeat(n), "]".repeat(n)));
        let deepest = lists.map(|source| compile(&source)).find_map(Result::ok).unwrap();
        deepest.evaluate(&[], &mut Budget::default()).unwrap();
        for source in
            [format!("{}true", "!".repeat(10_000)), "a.".repeat(5000) + "b", "1+".repeat(5000) + "1"]
        {
            let _ = compile(&source).map(|program| program.evaluate(&[], &mut Budget::default()));
        }
    }
}
