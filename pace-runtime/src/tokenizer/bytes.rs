//! The byte-level alphabet of GPT-2: every byte is spelt as one printable character, so that any byte string is
//! a string of vocabulary characters. Printable Latin-1 stands for itself, the other 68 bytes follow from U+0100
//! in ascending order.

/// The byte that `c` spells, if it is in the alphabet.
pub(super) fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    let byte = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// The bytes of a token: its characters' bytes if all of them are in the alphabet, else its own UTF-8 (a special
/// token may hold anything).
pub(super) fn append_bytes(token: &str, out: &mut Vec<u8>) {
    let start = out.len();
    for c in token.chars() {
        let Some(byte) = byte_of(c) else {
            out.truncate(start);
            out.extend_from_slice(token.as_bytes());
            return;
        };
        out.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_alphabet_is_the_librarys() {
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        let bytes: BTreeSet<u8> = alphabet.iter().filter_map(|c| byte_of(*c)).collect();
        assert_eq!((alphabet.len(), bytes.len()), (256, 256));
        assert_eq!((0..0x400).filter_map(char::from_u32).filter_map(byte_of).count(), 256);
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of('Ń'), Some(0xAD));
    }

    #[test]
    fn a_token_outside_the_alphabet_is_its_own_text() {
        let mut out = b"x".to_vec();
        append_bytes("ð", &mut out);
        append_bytes("<｜end｜>", &mut out);
        assert_eq!(out, [b"x\xF0".as_slice(), "<｜end｜>".as_bytes()].concat());
    }
}
