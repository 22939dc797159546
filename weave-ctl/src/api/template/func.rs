//! The functions that templates may call.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt::{self, Write as _};

use super::value::Value;
use super::{ExecError, UNSUPPORTED};

/// A function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// First empty argument, or the last.
    And,
    /// First non-empty argument, or the last.
    Or,
    /// Negation.
    Not,
    /// Number of elements or bytes.
    Len,
    /// Element of a list or map.
    Index,
    /// Formatted.
    Printf,
    /// Formatted by default, spaces between operands that are no text.
    Print,
    /// Formatted by default, spaces between all, newline.
    Println,
    /// Compact JSON.
    Json,
    /// Comparison; the first argument with each other for `eq`.
    Compare(Op),
}

/// A comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

impl Function {
    /// By name.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "and" => Self::And,
            "or" => Self::Or,
            "not" => Self::Not,
            "len" => Self::Len,
            "index" => Self::Index,
            "printf" => Self::Printf,
            "print" => Self::Print,
            "println" => Self::Println,
            "json" => Self::Json,
            "eq" => Self::Compare(Op::Eq),
            "ne" => Self::Compare(Op::Ne),
            "lt" => Self::Compare(Op::Lt),
            "le" => Self::Compare(Op::Le),
            "gt" => Self::Compare(Op::Gt),
            "ge" => Self::Compare(Op::Ge),
            _ => return None,
        })
    }

    /// Does this argument of `and` or `or` settle the result?
    pub fn decided_by(self, value: &Value) -> bool {
        match self {
            Self::And => !value.is_true(),
            Self::Or => value.is_true(),
            _ => false,
        }
    }
}

/// Longest text, in bytes.
const LONGEST: usize = 16 * 1024 * 1024;

/// A text that does not grow without end.
#[derive(Default)]
pub struct Bounded(pub String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > LONGEST {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

impl Bounded {
    /// Adds a text.
    pub fn push(&mut self, text: &str) -> Result<(), ExecError> {
        self.write_str(text).map_err(|_| too_much())
    }

    /// Adds a value in its default form.
    pub fn show(&mut self, value: &Value) -> Result<(), ExecError> {
        write!(self, "{value}").map_err(|_| too_much())
    }
}

/// The template went over a limit.
pub fn too_much() -> ExecError {
    ExecError("the template asks for too much".to_owned())
}

/// Calls a function.
pub fn call<'d>(function: Function, mut args: Vec<Cow<'d, Value>>) -> Result<Cow<'d, Value>, ExecError> {
    let value = match (function, &args[..]) {
        (Function::And | Function::Or, [.., _]) => {
            let decided = args.iter().position(|v| function.decided_by(v));
            return Ok(args.swap_remove(decided.unwrap_or(args.len() - 1)));
        }
        (Function::Not, [value]) => Value::Bool(!value.is_true()),
        (Function::Len, [value]) => Value::Int(length(value)?.try_into().unwrap_or(i128::MAX)),
        (Function::Index, [value, keys @ ..]) => match value {
            Cow::Borrowed(value) => {
                return keys
                    .iter()
                    .try_fold(*value, |v, key| index(v, key))
                    .map(Cow::Borrowed);
            }
            Cow::Owned(value) => keys.iter().try_fold(value, |v, key| index(v, key))?.clone(),
        },
        (Function::Printf, [format, args @ ..]) => match &**format {
            Value::Text(format) => Value::Text(printf(format, args)?),
            other => return error(format!("printf: the format is of type {}", other.kind())),
        },
        (Function::Print, args) => Value::Text(print(args)?),
        (Function::Println, args) => {
            let mut out = Bounded::default();
            for (i, value) in args.iter().enumerate() {
                out.push(if i > 0 { " " } else { "" })?;
                out.show(value)?;
            }
            out.push("\n")?;
            Value::Text(out.0)
        }
        (Function::Json, [value]) => {
            let json = serde_json::to_string(value.as_ref()).map_err(|e| ExecError(e.to_string()))?;
            Value::Text(crate::api::report::escape_html(&json))
        }
        (Function::Compare(Op::Eq), [first, others @ ..]) if !others.is_empty() => {
            let mut equal = false;
            for other in others {
                equal |= compare(Op::Eq, first, other)?;
            }
            Value::Bool(equal)
        }
        (Function::Compare(op), [a, b]) => Value::Bool(compare(op, a, b)?),
        _ => {
            return error(format!(
                "wrong number of args for {function:?}: got {}",
                args.len()
            ));
        }
    };
    Ok(Cow::Owned(value))
}

fn error<T>(text: impl Into<String>) -> Result<T, ExecError> {
    Err(ExecError(text.into()))
}

fn length(value: &Value) -> Result<usize, ExecError> {
    match (value, value.items(), value.pairs()) {
        (Value::Text(text), ..) => Ok(text.len()),
        (_, Some(items), _) => Ok(items.len()),
        (_, _, Some(pairs)) => Ok(pairs.len()),
        (other, ..) => error(format!("len of type {}", other.kind())),
    }
}

fn index<'v>(value: &'v Value, key: &Value) -> Result<&'v Value, ExecError> {
    if let (Some(pairs), Value::Text(key)) = (value.pairs(), key) {
        return Ok(pairs
            .iter()
            .find(|(k, _)| k == key)
            .map_or(&Value::Missing, |(_, v)| v));
    }
    if let (Some(items), Value::Int(n)) = (value.items(), key) {
        let item = usize::try_from(*n).ok().and_then(|n| items.get(n));
        return item.map_or_else(|| error(format!("index out of range: {n}")), Ok);
    }
    error(format!("can't index {} with {}", value.kind(), key.kind()))
}

fn compare(op: Op, a: &Value, b: &Value) -> Result<bool, ExecError> {
    let order = match (a, b) {
        (Value::Bool(a), Value::Bool(b)) if matches!(op, Op::Eq | Op::Ne) => Some(a.cmp(b)),
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Float(a), Value::Float(b)) => a.partial_cmp(b),
        (Value::Text(a), Value::Text(b)) => Some(a.cmp(b)),
        (Value::Nil | Value::Missing, Value::Nil | Value::Missing) if matches!(op, Op::Eq | Op::Ne) => {
            Some(Ordering::Equal)
        }
        // As for an attribute that is not there, compared with a constant.
        (Value::Nil | Value::Missing, _) | (_, Value::Nil | Value::Missing)
            if matches!(op, Op::Eq | Op::Ne) =>
        {
            None
        }
        _ => return error("incompatible types for comparison"),
    };
    Ok(match op {
        Op::Eq => order == Some(Ordering::Equal),
        Op::Ne => order != Some(Ordering::Equal),
        Op::Lt => order == Some(Ordering::Less),
        Op::Le => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        Op::Gt => order == Some(Ordering::Greater),
        Op::Ge => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
    })
}

fn print(args: &[Cow<'_, Value>]) -> Result<String, ExecError> {
    let mut out = Bounded::default();
    let mut after_text = true;
    for value in args {
        let is_text = matches!(**value, Value::Text(_));
        out.push(if after_text || is_text { "" } else { " " })?;
        out.show(value)?;
        after_text = is_text;
    }
    Ok(out.0)
}

/// Widest field and finest precision.
const WIDEST: usize = 1000;

fn printf(format: &str, args: &[Cow<'_, Value>]) -> Result<String, ExecError> {
    let mut out = Bounded::default();
    let mut args = args.iter();
    let mut rest = format;
    while let Some((text, after)) = rest.split_once('%') {
        out.push(text)?;
        let flags_end = after.find(|c| !"-+0 #".contains(c)).unwrap_or(after.len());
        let (flags, after) = after.split_at(flags_end);
        let (width, after) = number(after);
        let (precision, after) = match after.strip_prefix('.') {
            Some(after) => {
                let (precision, after) = number(after);
                (Some(precision.unwrap_or(0)), after)
            }
            None => (None, after),
        };
        let mut chars = after.chars();
        let verb = chars.next();
        rest = chars.as_str();
        let Some(verb) = verb else {
            out.push("%!(NOVERB)")?;
            break;
        };
        if "bcoOpTUXeEFG".contains(verb) || flags.contains(['#', ' ']) {
            return error(format!("printf: %{flags}{verb} {UNSUPPORTED}"));
        }
        if verb == '%' {
            out.push("%")?;
            continue;
        }
        if width.max(precision).is_some_and(|n| n > WIDEST) {
            return error("printf: width or precision is too large");
        }
        let Some(value) = args.next() else {
            out.push(&format!("%!{verb}(MISSING)"))?;
            continue;
        };
        let text = verb_text(verb, value, flags, precision);
        out.push(&pad(&text, flags, width.unwrap_or(0), value))?;
    }
    out.push(rest)?;
    if let Some(value) = args.next() {
        out.push(&format!("%!(EXTRA {}=", value.kind()))?;
        out.show(value)?;
        out.push(")")?;
    }
    Ok(out.0)
}

fn number(text: &str) -> (Option<usize>, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    // Too many digits are as good as too wide a field.
    (
        (!digits.is_empty()).then(|| digits.parse().unwrap_or(usize::MAX)),
        rest,
    )
}

fn verb_text(verb: char, value: &Value, flags: &str, precision: Option<usize>) -> String {
    let signed = |text: String| {
        if flags.contains('+') && !text.starts_with('-') {
            format!("+{text}")
        } else {
            text
        }
    };
    match (verb, value) {
        ('v', Value::Int(_)) | ('d', Value::Int(_)) => signed(value.to_string()),
        ('s', Value::Text(text)) => text.chars().take(precision.unwrap_or(usize::MAX)).collect(),
        ('q', Value::Text(text)) => quote(text),
        ('x', Value::Int(n)) => format!("{n:x}"),
        ('x', Value::Text(text)) => text.bytes().map(|b| format!("{b:02x}")).collect(),
        ('f', Value::Float(n)) => signed(format!("{n:.*}", precision.unwrap_or(6))),
        ('g', Value::Float(n)) => signed(n.to_string()),
        ('t', Value::Bool(b)) => b.to_string(),
        ('v', value) => value.to_string(),
        ('s', Value::List(_) | Value::Map(_) | Value::Struct(_)) => value.to_string(),
        (verb, value) => format!("%!{verb}({}={value})", value.kind()),
    }
}

/// A string as Go would write it.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + "\""
}

fn pad(text: &str, flags: &str, width: usize, value: &Value) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let numeric = matches!(value, Value::Int(_) | Value::Float(_));
    if flags.contains('-') {
        format!("{text}{}", " ".repeat(missing))
    } else if flags.contains('0') && numeric {
        let (sign, digits) = text.split_at(usize::from(text.starts_with(['-', '+'])));
        format!("{sign}{}{digits}", "0".repeat(missing))
    } else {
        format!("{}{text}", " ".repeat(missing))
    }
}
