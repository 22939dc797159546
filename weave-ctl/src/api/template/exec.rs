//! Runs a template over a value.

use std::borrow::Cow;

use super::ExecError;
use super::func::{self, Bounded, too_much};
use super::parse::{Base, Command, Kind, Node, Pipe, Term};
use super::value::Value;

/// What a template may cost: [`STEP`] for each node, round of a loop and term, and one for each byte
/// of text that a function made or a variable gave, so that neither time nor memory can run away.
pub const BUDGET: usize = 32 * 1024 * 1024;
/// What a node, round or term costs.
const STEP: usize = 16;

type Val<'a> = Cow<'a, Value>;

/// Renders `nodes` with `data` as `.` and `$`.
pub fn run(nodes: &[Node], data: &Value, budget: usize) -> Result<String, ExecError> {
    let mut machine = Machine {
        out: Bounded::default(),
        budget,
        variables: vec![("", Cow::Borrowed(data))],
    };
    machine.nodes(nodes, &Cow::Borrowed(data))?;
    Ok(machine.out.0)
}

/// How a list of nodes ended.
#[derive(PartialEq)]
enum Flow {
    On,
    Break,
    Continue,
}

struct Machine<'t, 'd> {
    out: Bounded,
    budget: usize,
    variables: Vec<(&'t str, Val<'d>)>,
}

impl<'t, 'd> Machine<'t, 'd> {
    fn step(&mut self) -> Result<(), ExecError> {
        self.charge(STEP)
    }

    fn charge(&mut self, cost: usize) -> Result<(), ExecError> {
        self.budget = self.budget.checked_sub(cost).ok_or_else(too_much)?;
        Ok(())
    }

    fn charged(&mut self, value: Val<'d>) -> Result<Val<'d>, ExecError> {
        if let Value::Text(text) = &*value {
            self.charge(text.len())?;
        }
        Ok(value)
    }

    fn nodes(&mut self, nodes: &'t [Node], dot: &Val<'d>) -> Result<Flow, ExecError> {
        for node in nodes {
            self.step()?;
            match node {
                Node::Text(text) => self.out.push(text)?,
                Node::Print(pipe) => {
                    let value = self.pipe(pipe, dot)?;
                    match &pipe.variables[..] {
                        [name] => self.set(name, value, pipe.declares),
                        _ => self.out.show(&value)?,
                    }
                }
                Node::Break => return Ok(Flow::Break),
                Node::Continue => return Ok(Flow::Continue),
                Node::Block(kind, pipe, body, otherwise) => {
                    let in_scope = self.variables.len();
                    let flow = self.block(*kind, pipe, body, otherwise, dot);
                    self.variables.truncate(in_scope);
                    let flow = flow?;
                    if flow != Flow::On {
                        return Ok(flow);
                    }
                }
            }
        }
        Ok(Flow::On)
    }

    fn block(
        &mut self,
        kind: Kind,
        pipe: &'t Pipe,
        body: &'t [Node],
        otherwise: &'t [Node],
        dot: &Val<'d>,
    ) -> Result<Flow, ExecError> {
        let value = self.pipe(pipe, dot)?;
        if let ([name], Kind::If | Kind::With) = (&pipe.variables[..], kind) {
            self.set(name, value.clone(), pipe.declares);
        }
        match kind {
            Kind::Range => self.range(pipe, value, body, otherwise, dot),
            _ if !value.is_true() => self.nodes(otherwise, dot),
            Kind::With => self.nodes(body, &value),
            Kind::If => self.nodes(body, dot),
        }
    }

    fn range(
        &mut self,
        pipe: &'t Pipe,
        value: Val<'d>,
        body: &'t [Node],
        otherwise: &'t [Node],
        dot: &Val<'d>,
    ) -> Result<Flow, ExecError> {
        let rounds: Vec<(Val<'d>, Val<'d>)> = match value {
            Cow::Borrowed(value) => rounds(value)?
                .map(|(k, v)| (Cow::Owned(k), Cow::Borrowed(v)))
                .collect(),
            Cow::Owned(value) => rounds(&value)?
                .map(|(k, v)| (Cow::Owned(k), Cow::Owned(v.clone())))
                .collect(),
        };
        if rounds.is_empty() {
            return self.nodes(otherwise, dot);
        }
        let in_scope = self.variables.len();
        for (key, item) in rounds {
            self.step()?;
            match &pipe.variables[..] {
                [] => {}
                [one] => self.set(one, item.clone(), pipe.declares),
                [first, second, ..] => {
                    self.set(first, key, pipe.declares);
                    self.set(second, item.clone(), pipe.declares);
                }
            }
            let flow = self.nodes(body, &item)?;
            self.variables.truncate(in_scope);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::On)
    }

    fn set(&mut self, name: &'t str, value: Val<'d>, declare: bool) {
        match self.variables.iter_mut().rev().find(|(n, _)| *n == name) {
            Some((_, old)) if !declare => *old = value,
            _ => self.variables.push((name, value)),
        }
    }

    fn pipe(&mut self, pipe: &'t Pipe, dot: &Val<'d>) -> Result<Val<'d>, ExecError> {
        let mut last = None;
        for command in &pipe.commands {
            last = Some(self.command(command, dot, last)?);
        }
        Ok(last.unwrap_or(Cow::Owned(Value::Nil)))
    }

    fn command(
        &mut self,
        command: &'t Command,
        dot: &Val<'d>,
        last: Option<Val<'d>>,
    ) -> Result<Val<'d>, ExecError> {
        let Some(function) = command.function else {
            let [term] = &command.args[..] else {
                return Err(ExecError("a command without a function has one value".to_owned()));
            };
            return self.term(term, dot);
        };
        let mut args = Vec::new();
        for (i, term) in command.args.iter().enumerate() {
            let value = self.term(term, dot)?;
            // `and` and `or` leave off what no longer matters.
            let more = i + 1 < command.args.len() || last.is_some();
            if more && function.decided_by(&value) {
                return Ok(value);
            }
            args.push(value);
        }
        args.extend(last);
        let value = func::call(function, args)?;
        self.charged(value)
    }

    fn term(&mut self, term: &'t Term, dot: &Val<'d>) -> Result<Val<'d>, ExecError> {
        self.step()?;
        let base = match &term.base {
            Base::Dot => dot.clone(),
            Base::Constant(value) => Cow::Owned(value.clone()),
            Base::Pipe(pipe) => self.pipe(pipe, dot)?,
            Base::Variable(name) => match self.variables.iter().rev().find(|(n, _)| n == name) {
                Some((_, value)) => {
                    let value = value.clone();
                    self.charged(value)?
                }
                None => return Err(ExecError(format!("undefined variable ${name}"))),
            },
        };
        term.fields.iter().try_fold(base, |value, name| match value {
            Cow::Borrowed(value) => Ok(field(value, name)?.map_or(Cow::Owned(Value::Missing), Cow::Borrowed)),
            Cow::Owned(value) => Ok(Cow::Owned(
                field(&value, name)?.cloned().unwrap_or(Value::Missing),
            )),
        })
    }
}

/// `None` for a key that a map does not have.
fn field<'v>(value: &'v Value, name: &str) -> Result<Option<&'v Value>, ExecError> {
    let find = |pairs: &'v [(String, Value)]| pairs.iter().find(|(key, _)| key == name).map(|(_, v)| v);
    match value {
        Value::Struct(fields) => match find(fields) {
            Some(value) => Ok(Some(value)),
            None => Err(ExecError(format!("can't evaluate field {name}"))),
        },
        Value::Map(_) => Ok(find(value.pairs().unwrap_or_default())),
        Value::Nil => Err(ExecError(format!("nil pointer evaluating {name}"))),
        other => Err(ExecError(format!(
            "can't evaluate field {name} in type {}",
            other.kind()
        ))),
    }
}

type Rounds<'v> = Box<dyn Iterator<Item = (Value, &'v Value)> + 'v>;

fn rounds(value: &Value) -> Result<Rounds<'_>, ExecError> {
    if let Some(items) = value.items() {
        return Ok(Box::new((0..).map(Value::Int).zip(items)));
    }
    if let Some(pairs) = value.pairs() {
        return Ok(Box::new(pairs.iter().map(|(k, v)| (Value::Text(k.clone()), v))));
    }
    match value {
        Value::Missing => Ok(Box::new(std::iter::empty())),
        other => Err(ExecError(format!("range can't iterate over {other}"))),
    }
}
