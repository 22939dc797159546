//! Decoding gob streams of strangers: everything is bounded by the bytes given and by fixed limits.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{GobError, Value};

/// Deepest nesting of a value (the deepest legitimate one, Paxos claims, has 6).
pub const MAX_DEPTH: usize = 16;
/// Most values, at all levels, in one top-level value: bounds the memory that it takes.
pub const MAX_VALUES: usize = 1 << 20;
/// Most descriptors in a stream, and most fields in a struct (IP allocation has 10 and 5).
const MAX_TYPES: usize = 128;
/// User types start here (wire.md 3.3); everything below is Go's own.
const FIRST_USER_ID: i64 = 64;

pub(super) const BOOL: i64 = 1;
const INT: i64 = 2;
pub(super) const UINT: i64 = 3;
pub(super) const BYTES: i64 = 5;
pub(super) const STRING: i64 = 6;

/// A descriptor: ids of the parts.
#[derive(Debug)]
pub(super) enum Wire<'a> {
    Slice(i64),
    Map(i64, i64),
    Struct(Vec<(&'a str, i64)>),
}

/// Reads the values of one stream.
#[derive(Debug)]
pub struct Decoder<'a> {
    input: Input<'a>,
    types: BTreeMap<i64, Wire<'a>>,
}

impl<'a> Decoder<'a> {
    /// A stream that starts with `input`. Bytes after the last value asked for are never looked at.
    #[must_use]
    pub fn new(input: &'a [u8]) -> Self {
        Self {
            input: Input(input),
            types: BTreeMap::new(),
        }
    }

    /// The next value, or `None` at the end of the input. After an error the stream is of no use.
    pub fn next_value(&mut self) -> Result<Option<Value<'a>>, GobError> {
        let Some((id, mut body)) = self.next_body()? else {
            return Ok(None);
        };
        let value = body.value(id, 0)?;
        body.input.end()?;
        Ok(Some(value))
    }

    /// The next value's id and its bytes, for a reader that does without a [`Value`].
    pub(super) fn next_body(&mut self) -> Result<Option<(i64, Body<'a, '_>)>, GobError> {
        while !self.input.0.is_empty() {
            let mut message = Input(self.input.counted()?);
            let id = message.int()?;
            if id < 0 {
                self.define(id.checked_neg().ok_or(GobError::Number)?, message)?;
                continue;
            }
            let is_struct = matches!(self.types.get(&id), Some(Wire::Struct(_)));
            if !is_struct && message.uint()? != 0 {
                return Err(GobError::Number);
            }
            let body = Body {
                types: &self.types,
                input: message,
                budget: MAX_VALUES,
            };
            return Ok(Some((id, body)));
        }
        Ok(None)
    }

    /// Like [`Self::next_value`], but the end of the input is [`GobError::Missing`]; `what` names it.
    pub fn require(&mut self, what: &'static str) -> Result<Value<'a>, GobError> {
        self.next_value()?.ok_or(GobError::Missing(what))
    }

    fn define(&mut self, id: i64, mut message: Input<'a>) -> Result<(), GobError> {
        let wire = descriptor(&mut message)?;
        message.end()?;
        if id < FIRST_USER_ID {
            return Err(GobError::Descriptor);
        }
        if self.types.len() == MAX_TYPES {
            return Err(GobError::TooMany);
        }
        match self.types.insert(id, wire) {
            None => Ok(()),
            Some(_) => Err(GobError::DuplicateType),
        }
    }
}

/// A `wireType` (wire.md 3.3): a struct with just one field set.
fn descriptor<'a>(input: &mut Input<'a>) -> Result<Wire<'a>, GobError> {
    let mut wire = None;
    input.fields(|kind, input| {
        let mut fields = Vec::new();
        let mut ids = [0; 2];
        input.fields(|number, input| {
            match (kind, number) {
                (2..=4, 1) => common(input)?,
                (2 | 4, 2) => ids[0] = input.int()?,
                (4, 3) => ids[1] = input.int()?,
                (3, 2) => fields = struct_fields(input)?,
                _ => return Err(GobError::Descriptor),
            }
            Ok(())
        })?;
        let found = match kind {
            2 => Wire::Slice(ids[0]),
            3 => Wire::Struct(fields),
            4 => Wire::Map(ids[0], ids[1]),
            _ => return Err(GobError::Descriptor),
        };
        match wire.replace(found) {
            None => Ok(()),
            Some(_) => Err(GobError::Descriptor),
        }
    })?;
    wire.ok_or(GobError::Descriptor)
}

/// Name and id of a type: the id is in the message already, and names mean nothing.
fn common(input: &mut Input<'_>) -> Result<(), GobError> {
    input.fields(|part, input| match part {
        1 => input.counted().map(drop),
        2 => input.int().map(drop),
        _ => Err(GobError::Descriptor),
    })
}

fn struct_fields<'a>(input: &mut Input<'a>) -> Result<Vec<(&'a str, i64)>, GobError> {
    let count = input.count()?;
    if count > MAX_TYPES {
        return Err(GobError::TooMany);
    }
    (0..count)
        .map(|_| {
            let (mut name, mut id) = ("", 0);
            input.fields(|number, input| {
                match number {
                    1 => name = std::str::from_utf8(input.counted()?).map_err(|_| GobError::Descriptor)?,
                    2 => id = input.int()?,
                    _ => return Err(GobError::Descriptor),
                }
                Ok(())
            })?;
            Ok((name, id))
        })
        .collect()
}

/// One value message.
pub(super) struct Body<'a, 't> {
    pub(super) types: &'t BTreeMap<i64, Wire<'a>>,
    pub(super) input: Input<'a>,
    /// How many more values it may contain.
    budget: usize,
}

impl<'a> Body<'a, '_> {
    /// Counts one value.
    pub(super) fn spend(&mut self) -> Result<(), GobError> {
        self.budget = self.budget.checked_sub(1).ok_or(GobError::TooMany)?;
        Ok(())
    }

    pub(super) fn value(&mut self, id: i64, depth: usize) -> Result<Value<'a>, GobError> {
        self.spend()?;
        match id {
            BOOL => return Ok(Value::Bool(self.input.uint()? != 0)),
            INT => return Ok(Value::Int(self.input.int()?)),
            UINT => return Ok(Value::Uint(self.input.uint()?)),
            BYTES => return Ok(Value::Bytes(Cow::Borrowed(self.input.counted()?))),
            STRING => return Ok(Value::String(String::from_utf8_lossy(self.input.counted()?))),
            _ => {}
        }
        if depth == MAX_DEPTH {
            return Err(GobError::TooDeep);
        }
        let (types, depth) = (self.types, depth + 1);
        match types.get(&id).ok_or(GobError::UnknownType(id))? {
            Wire::Slice(element) => {
                let count = self.input.count()?;
                (0..count)
                    .map(|_| self.value(*element, depth))
                    .collect::<Result<_, _>>()
                    .map(Value::Slice)
            }
            Wire::Map(key, element) => {
                let count = self.input.count()?;
                (0..count)
                    .map(|_| Ok((self.value(*key, depth)?, self.value(*element, depth)?)))
                    .collect::<Result<_, _>>()
                    .map(Value::Map)
            }
            Wire::Struct(fields) => self.fields(fields, depth).map(Value::Struct),
        }
    }

    fn fields(
        &mut self,
        fields: &[(&'a str, i64)],
        depth: usize,
    ) -> Result<Vec<(&'a str, Value<'a>)>, GobError> {
        // Room for an ordinary struct at once, but never much for one that turns out to be empty.
        let mut found = Vec::with_capacity(fields.len().min(8));
        let mut number = 0_usize;
        loop {
            let delta = self.input.uint()?;
            if delta == 0 {
                break;
            }
            number = usize::try_from(delta)
                .ok()
                .and_then(|d| number.checked_add(d))
                .ok_or(GobError::Field)?;
            let (name, id) = *fields.get(number - 1).ok_or(GobError::Field)?;
            found.push((name, self.value(id, depth)?));
        }
        if found.len() * 2 < found.capacity() {
            found.shrink_to_fit();
        }
        Ok(found)
    }
}

/// What is left to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], GobError> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(GobError::Truncated)?;
        self.0 = tail;
        Ok(head)
    }

    pub(super) fn uint(&mut self) -> Result<u64, GobError> {
        let (&first, tail) = self.0.split_first().ok_or(GobError::Truncated)?;
        self.0 = tail;
        if first < 0x80 {
            return Ok(u64::from(first));
        }
        let length = usize::from(first.wrapping_neg());
        if length > 8 {
            return Err(GobError::Number);
        }
        Ok(self
            .take(length)?
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn int(&mut self) -> Result<i64, GobError> {
        let raw = self.uint()?;
        let magnitude = (raw >> 1).cast_signed();
        Ok(if raw & 1 == 0 { magnitude } else { !magnitude })
    }

    /// A count of things that take at least one byte each.
    pub(super) fn count(&mut self) -> Result<usize, GobError> {
        let count = self.uint()?;
        usize::try_from(count)
            .ok()
            .filter(|c| *c <= self.0.len())
            .ok_or(GobError::Truncated)
    }

    pub(super) fn counted(&mut self) -> Result<&'a [u8], GobError> {
        let count = self.count()?;
        self.take(count)
    }

    /// Calls `read` for every field of a struct, with the field's number.
    fn fields(
        &mut self,
        mut read: impl FnMut(u64, &mut Self) -> Result<(), GobError>,
    ) -> Result<(), GobError> {
        let mut number = 0_u64;
        loop {
            let delta = self.uint()?;
            if delta == 0 {
                return Ok(());
            }
            number = number.checked_add(delta).ok_or(GobError::Field)?;
            read(number, self)?;
        }
    }

    pub(super) fn end(&self) -> Result<(), GobError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(GobError::Trailing)
        }
    }
}
