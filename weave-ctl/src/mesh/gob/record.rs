//! Reading flat structs, one or many, without a tree of values: for large tables.
//!
//! As strict and as lenient as reading a [`Value`](super::Value) is: what is malformed is an error
//! at once, what has another kind only when its field is asked for.

use std::collections::BTreeMap;

use super::decode::{BOOL, BYTES, Body, Decoder, STRING, UINT, Wire};
use super::{GobError, Type};

/// One field of a struct as received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field<'a> {
    Missing,
    OtherKind,
    Uint(u64),
    Bytes(&'a [u8]),
}

/// A missing field is the zero of its kind; another kind is [`GobError::WrongType`] with `what`.
impl<'a> Field<'a> {
    pub(crate) fn uint(self, what: &'static str) -> Result<u64, GobError> {
        match self {
            Field::Missing => Ok(0),
            Field::Uint(number) => Ok(number),
            _ => Err(GobError::WrongType(what)),
        }
    }

    pub(crate) fn bool(self, what: &'static str) -> Result<bool, GobError> {
        Ok(self.uint(what)? != 0)
    }

    /// Also of a string, which may be no UTF-8.
    pub(crate) fn bytes(self, what: &'static str) -> Result<&'a [u8], GobError> {
        match self {
            Field::Missing => Ok(&[]),
            Field::Bytes(bytes) => Ok(bytes),
            _ => Err(GobError::WrongType(what)),
        }
    }
}

/// What to do with a field as the sender's descriptor has it.
#[derive(Debug)]
struct Step {
    id: i64,
    /// Which of the fields asked for it is.
    slot: Option<usize>,
    /// It is of the kind asked for.
    fits: bool,
}

/// Reads structs of which `N` fields are asked for.
#[derive(Debug)]
pub(crate) struct RecordReader<const N: usize> {
    wanted: [(&'static str, Type); N],
    /// By the struct's id, which is never described twice.
    plans: BTreeMap<i64, Vec<Step>>,
}

impl<const N: usize> RecordReader<N> {
    /// Only scalars can be asked for.
    pub(crate) fn new(wanted: [(&'static str, Type); N]) -> Self {
        Self {
            wanted,
            plans: BTreeMap::new(),
        }
    }

    /// The next value, or `None` at the end of the input. All fields of what is no struct are of
    /// another kind.
    pub(crate) fn next<'a>(&mut self, decoder: &mut Decoder<'a>) -> Result<Option<[Field<'a>; N]>, GobError> {
        let Some((id, mut body)) = decoder.next_body()? else {
            return Ok(None);
        };
        let plan = self.plan(&body, id);
        let record = record(&mut body, plan, id, 0)?;
        body.input.end()?;
        Ok(Some(record))
    }

    /// Calls `each` for every element of the next value, and says whether it is a slice at all;
    /// `None` at the end of the input. After an error `each` may have been called for some.
    pub(crate) fn next_slice<'a>(
        &mut self,
        decoder: &mut Decoder<'a>,
        mut each: impl FnMut([Field<'a>; N]),
    ) -> Result<Option<bool>, GobError> {
        let Some((id, mut body)) = decoder.next_body()? else {
            return Ok(None);
        };
        let element = match body.types.get(&id) {
            Some(Wire::Slice(element)) => Some(*element),
            _ => None,
        };
        if let Some(element) = element {
            body.spend()?;
            let plan = self.plan(&body, element);
            for _ in 0..body.input.count()? {
                each(record(&mut body, plan, element, 1)?);
            }
        } else {
            body.value(id, 0)?;
        }
        body.input.end()?;
        Ok(Some(element.is_some()))
    }

    /// `None` for what is no struct.
    fn plan(&mut self, body: &Body<'_, '_>, id: i64) -> Option<&[Step]> {
        let Some(Wire::Struct(received)) = body.types.get(&id) else {
            return None;
        };
        let wanted = &self.wanted;
        Some(self.plans.entry(id).or_insert_with(|| plan(wanted, received)))
    }
}

fn record<'a, const N: usize>(
    body: &mut Body<'a, '_>,
    plan: Option<&[Step]>,
    id: i64,
    depth: usize,
) -> Result<[Field<'a>; N], GobError> {
    let Some(plan) = plan else {
        body.value(id, depth)?;
        return Ok([Field::OtherKind; N]);
    };
    body.spend()?;
    let mut record = [Field::Missing; N];
    let mut number = 0_usize;
    while let delta @ 1.. = body.input.uint()? {
        number = usize::try_from(delta)
            .ok()
            .and_then(|d| number.checked_add(d))
            .ok_or(GobError::Field)?;
        let step = plan.get(number - 1).ok_or(GobError::Field)?;
        let field = read(body, step, depth + 1)?;
        // Of two fields with the same name the first counts.
        if let Some(slot @ Field::Missing) = step.slot.and_then(|slot| record.get_mut(slot)) {
            *slot = field;
        }
    }
    Ok(record)
}

fn read<'a>(body: &mut Body<'a, '_>, step: &Step, depth: usize) -> Result<Field<'a>, GobError> {
    if !step.fits {
        return body.value(step.id, depth).map(|_| Field::OtherKind);
    }
    body.spend()?;
    match step.id {
        BYTES | STRING => Ok(Field::Bytes(body.input.counted()?)),
        _ => Ok(Field::Uint(body.input.uint()?)),
    }
}

fn plan(wanted: &[(&'static str, Type)], received: &[(&str, i64)]) -> Vec<Step> {
    let step = |(name, id): &(&str, i64)| {
        let slot = wanted.iter().position(|(known, _)| known == name);
        let kind = slot.and_then(|slot| wanted.get(slot)).map(|(_, ty)| ty);
        let fits = match kind {
            Some(Type::Bool) => *id == BOOL,
            Some(Type::Uint) => *id == UINT,
            Some(Type::Bytes) => *id == BYTES,
            Some(Type::String) => *id == STRING,
            _ => false,
        };
        Step { id: *id, slot, fits }
    };
    received.iter().map(step).collect()
}
