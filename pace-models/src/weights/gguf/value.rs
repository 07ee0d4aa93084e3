//! [`Value`] and [`Array`]: the thirteen types of GGUF metadata.

use std::fmt;

use super::reader::{Fault, HeaderReader, wrong};

/// One metadata value, of the type that the file says.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An unsigned 8-bit number.
    U8(u8),
    /// A signed 8-bit number.
    I8(i8),
    /// An unsigned 16-bit number.
    U16(u16),
    /// A signed 16-bit number.
    I16(i16),
    /// An unsigned 32-bit number.
    U32(u32),
    /// A signed 32-bit number.
    I32(i32),
    /// A 32-bit float.
    F32(f32),
    /// True or false.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// Numbers, texts or arrays, all of one type.
    Array(Array),
    /// An unsigned 64-bit number.
    U64(u64),
    /// A signed 64-bit number.
    I64(i64),
    /// A 64-bit float.
    F64(f64),
}

/// A metadata array: the elements as they are stored, so that a vocabulary takes the memory of its strings.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Unsigned 8-bit numbers.
    U8(Vec<u8>),
    /// Signed 8-bit numbers.
    I8(Vec<i8>),
    /// Unsigned 16-bit numbers.
    U16(Vec<u16>),
    /// Signed 16-bit numbers.
    I16(Vec<i16>),
    /// Unsigned 32-bit numbers.
    U32(Vec<u32>),
    /// Signed 32-bit numbers.
    I32(Vec<i32>),
    /// 32-bit floats.
    F32(Vec<f32>),
    /// Truth values.
    Bool(Vec<bool>),
    /// UTF-8 texts.
    String(Vec<String>),
    /// Arrays, at most four deep in all.
    Array(Vec<Self>),
    /// Unsigned 64-bit numbers.
    U64(Vec<u64>),
    /// Signed 64-bit numbers.
    I64(Vec<i64>),
    /// 64-bit floats.
    F64(Vec<f64>),
}

impl Value {
    /// Reads a type and a value of it.
    pub(super) fn read(reader: &mut HeaderReader<'_>) -> Result<Self, Fault> {
        Ok(match reader.u32()? {
            0 => Self::U8(u8::from_le_bytes(reader.bytes()?)),
            1 => Self::I8(i8::from_le_bytes(reader.bytes()?)),
            2 => Self::U16(u16::from_le_bytes(reader.bytes()?)),
            3 => Self::I16(i16::from_le_bytes(reader.bytes()?)),
            4 => Self::U32(reader.u32()?),
            5 => Self::I32(i32::from_le_bytes(reader.bytes()?)),
            6 => Self::F32(f32::from_le_bytes(reader.bytes()?)),
            7 => Self::Bool(read_bool(reader)?),
            8 => Self::String(reader.string(u64::MAX)?),
            9 => Self::Array(Array::read(reader, 1)?),
            10 => Self::U64(reader.u64()?),
            11 => Self::I64(i64::from_le_bytes(reader.bytes()?)),
            12 => Self::F64(f64::from_le_bytes(reader.bytes()?)),
            id => return unknown_type(id),
        })
    }

    /// What a message calls a value of this type.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::U8(_) | Self::U16(_) | Self::U32(_) | Self::U64(_) => "an unsigned number",
            Self::I8(_) | Self::I16(_) | Self::I32(_) | Self::I64(_) => "a signed number",
            Self::F32(_) | Self::F64(_) => "a floating-point number",
            Self::Bool(_) => "a truth value",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
        }
    }

    /// The number, if this is a whole one and not negative.
    pub(super) fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(n) => Some(n.into()),
            Self::U16(n) => Some(n.into()),
            Self::U32(n) => Some(n.into()),
            Self::U64(n) => Some(n),
            Self::I8(n) => n.try_into().ok(),
            Self::I16(n) => n.try_into().ok(),
            Self::I32(n) => n.try_into().ok(),
            Self::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// The number, if this is a finite one.
    pub(super) fn as_f64(&self) -> Option<f64> {
        let number = match *self {
            Self::F32(n) => n.into(),
            Self::F64(n) => n,
            Self::I8(n) => n.into(),
            Self::I16(n) => n.into(),
            Self::I32(n) => n.into(),
            Self::I64(n) => n as f64,
            _ => self.as_u64()? as f64,
        };
        number.is_finite().then_some(number)
    }
}

impl fmt::Display for Value {
    /// The value on one line; of an array the first elements and the count. Strings are quoted and escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U8(n) => n.fmt(f),
            Self::I8(n) => n.fmt(f),
            Self::U16(n) => n.fmt(f),
            Self::I16(n) => n.fmt(f),
            Self::U32(n) => n.fmt(f),
            Self::I32(n) => n.fmt(f),
            Self::F32(n) => n.fmt(f),
            Self::Bool(b) => b.fmt(f),
            Self::String(s) => write!(f, "{s:?}"),
            Self::Array(array) => array.fmt(f),
            Self::U64(n) => n.fmt(f),
            Self::I64(n) => n.fmt(f),
            Self::F64(n) => n.fmt(f),
        }
    }
}

impl Array {
    /// How many elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::U16(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::U32(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::Bool(v) => v.len(),
            Self::String(v) => v.len(),
            Self::Array(v) => v.len(),
            Self::U64(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::F64(v) => v.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements, if they are whole numbers that all fit.
    pub(super) fn to_i32s(&self) -> Option<Vec<i32>> {
        fn fit<T: Copy + TryInto<i32>>(numbers: &[T]) -> Option<Vec<i32>> {
            numbers.iter().map(|&n| n.try_into().ok()).collect()
        }
        match self {
            Self::U8(v) => fit(v),
            Self::I8(v) => fit(v),
            Self::U16(v) => fit(v),
            Self::I16(v) => fit(v),
            Self::U32(v) => fit(v),
            Self::I32(v) => fit(v),
            Self::U64(v) => fit(v),
            Self::I64(v) => fit(v),
            Self::F32(_) | Self::F64(_) | Self::Bool(_) | Self::String(_) | Self::Array(_) => None,
        }
    }

    /// Reads an element type, a count and the elements of an array that is the `depth`th from outside.
    fn read(reader: &mut HeaderReader<'_>, depth: usize) -> Result<Self, Fault> {
        let id = reader.u32()?;
        let count = reader.u64()?;
        Ok(match id {
            0 => Self::U8(reader.numbers(count, u8::from_le_bytes)?),
            1 => Self::I8(reader.numbers(count, i8::from_le_bytes)?),
            2 => Self::U16(reader.numbers(count, u16::from_le_bytes)?),
            3 => Self::I16(reader.numbers(count, i16::from_le_bytes)?),
            4 => Self::U32(reader.numbers(count, u32::from_le_bytes)?),
            5 => Self::I32(reader.numbers(count, i32::from_le_bytes)?),
            6 => Self::F32(reader.numbers(count, f32::from_le_bytes)?),
            7 => Self::Bool(read_list(reader, count, 1, read_bool)?),
            8 => Self::String(read_list(reader, count, 8, |reader| reader.string(u64::MAX))?),
            9 if depth == MAX_DEPTH => return wrong(format!("arrays nested more than {MAX_DEPTH} deep")),
            9 => Self::Array(read_list(reader, count, 12, |reader| Self::read(reader, depth + 1))?),
            10 => Self::U64(reader.numbers(count, u64::from_le_bytes)?),
            11 => Self::I64(reader.numbers(count, i64::from_le_bytes)?),
            12 => Self::F64(reader.numbers(count, f64::from_le_bytes)?),
            id => return unknown_type(id),
        })
    }
}

impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U8(v) => show_list(f, v),
            Self::I8(v) => show_list(f, v),
            Self::U16(v) => show_list(f, v),
            Self::I16(v) => show_list(f, v),
            Self::U32(v) => show_list(f, v),
            Self::I32(v) => show_list(f, v),
            Self::F32(v) => show_list(f, v),
            Self::Bool(v) => show_list(f, v),
            Self::String(v) => show_list(f, v),
            Self::Array(v) => write!(f, "[{} arrays]", v.len()),
            Self::U64(v) => show_list(f, v),
            Self::I64(v) => show_list(f, v),
            Self::F64(v) => show_list(f, v),
        }
    }
}

/// Arrays may hold arrays down to this depth.
const MAX_DEPTH: usize = 4;

fn read_list<T>(
    reader: &mut HeaderReader<'_>,
    count: u64,
    min_bytes: u64,
    read: impl Fn(&mut HeaderReader<'_>) -> Result<T, Fault>,
) -> Result<Vec<T>, Fault> {
    let count = reader.claim(count, min_bytes, "array elements")?;
    let mut list = Vec::with_capacity(count);
    for _ in 0..count {
        list.push(read(reader)?);
    }
    Ok(list)
}

fn read_bool(reader: &mut HeaderReader<'_>) -> Result<bool, Fault> {
    match reader.bytes()? {
        [0] => Ok(false),
        [1] => Ok(true),
        [byte] => wrong(format!("the truth value {byte}; 0 or 1 is right")),
    }
}

fn unknown_type<T>(id: u32) -> Result<T, Fault> {
    wrong(format!("unknown value type {id}; 0 to 12 are right"))
}

fn show_list<T: fmt::Debug>(f: &mut fmt::Formatter<'_>, list: &[T]) -> fmt::Result {
    const SHOWN: usize = 4;
    if list.len() <= SHOWN {
        return write!(f, "{list:?}");
    }
    f.write_str("[")?;
    for item in &list[..SHOWN] {
        write!(f, "{item:?}, ")?;
    }
    write!(f, "… {} in all]", list.len())
}
