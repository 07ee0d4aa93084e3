//! Files that are malformed or made to hurt: each is an error that names the file and the tensor, and none panics.

use super::header::{MAX_HEADER, MAX_NAME, MAX_TENSORS};
use super::tests::{checkpoint, container, f32s};
use super::*;

fn open_bytes(bytes: &[u8]) -> Result<SafetensorsSource, ModelError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(SINGLE), bytes).unwrap();
    SafetensorsSource::open(dir.path())
}

fn refused(label: &str, bytes: &[u8], expected: &str) {
    let message = match open_bytes(bytes) {
        Ok(_) => panic!("{label}: opened"),
        Err(e) => e.to_string(),
    };
    assert!(message.contains("model.safetensors: ") && message.contains(expected), "{label}: {message}");
    assert!(message.len() < 800, "{label}: {} bytes of message", message.len());
}

/// `"w"` as an entry with this body, over `data` bytes.
fn entry(body: &str, data: usize) -> Vec<u8> {
    container(&format!("{{\"w\":{{{body}}}}}"), &vec![0; data])
}

#[test]
fn lengths_that_lie() {
    let good = checkpoint(&[("w", "F32", &[2], f32s(&[1.0, 2.0]))]);
    let with_length = |length: u64| [&length.to_le_bytes(), &good[8..]].concat();
    let cases: [(&str, Vec<u8>, &str); 13] = [
        ("empty file", Vec::new(), "has 0 bytes"),
        ("one byte", vec![2], "has 1 bytes"),
        ("half a length", vec![2, 0, 0, 0, 0, 0, 0], "has 7 bytes"),
        ("a length and nothing", 2u64.to_le_bytes().to_vec(), "header length is 2"),
        ("length 0", with_length(0), "header length is 0"),
        ("length 1", with_length(1), "header length is 1"),
        ("length beyond the file", with_length(good.len() as u64 - 7), "fit into the file"),
        ("length of 2^63", with_length(1 << 63), "header length is 9223372036854775808"),
        ("length of 2^64-1", with_length(u64::MAX), "header length is 18446744073709551615"),
        ("over the cap", container(&" ".repeat(MAX_HEADER as usize + 1), &[]), "header length is 8388609"),
        ("length one short", with_length(good.len() as u64 - 17), "header: EOF while parsing"),
        ("length one long", with_length(good.len() as u64 - 15), "tensor `w`: data_offsets [0, 8]"),
        ("a GGUF file", [b"GGUF\x03\0\0\0".as_slice(), &[0; 64]].concat(), "not safetensors?"),
    ];
    for (label, bytes, expected) in &cases {
        refused(label, bytes, expected);
    }
}

#[test]
fn json_that_is_no_header() {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let deep = nested(100_000);
    let deep_object = "{\"a\":".repeat(100_000);
    let mut not_utf8 = container(r#"{"w?":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#, &[0; 4]);
    not_utf8[11] = 0xff;
    let many = (0..=1024).map(|n| format!("\"k{n}\":\"\"")).collect::<Vec<_>>().join(",");
    let cases = [
        ("an array", container("[]", &[]), "header: invalid type: sequence"),
        ("a number", container("12", &[]), "header: invalid type: integer"),
        ("a string", container("\"ab\"", &[]), "header: invalid type: string"),
        ("null", container("null", &[]), "header: invalid type: null"),
        ("not JSON", container("hello", &[]), "header: expected value"),
        ("open object", container("{ ", &[]), "header: EOF"),
        ("text after the object", container("{} x", &[]), "header: trailing characters"),
        ("zero bytes as padding", container("{}\0\0", &[]), "header: trailing characters"),
        ("unquoted name", container("{w:1}", &[]), "header: key must be a string"),
        ("not UTF-8", not_utf8, "header: invalid unicode"),
        ("entry is a number", container("{\"w\":1}", &[]), "tensor `w`: invalid type: integer"),
        ("entry is null", container("{\"w\":null}", &[]), "tensor `w`: invalid type: null"),
        ("entry is deep", container(&format!("{{\"w\":{deep}}}"), &[]), "tensor `w`: invalid type: sequence"),
        ("objects are deep", container(&deep_object, &[]), "tensor `a`: "),
        ("shape is deep", entry(&format!("\"shape\":{deep}"), 0), "tensor `w`: invalid type: sequence"),
        ("metadata is deep", container(&format!("{{\"__metadata__\":{{\"a\":{deep}}}}}"), &[]), "header: "),
        (
            "metadata is a list",
            container("{\"__metadata__\":[]}", &[]),
            "`__metadata__` as an object of strings",
        ),
        ("metadata of numbers", container("{\"__metadata__\":{\"a\":1}}", &[]), "expected a string"),
        (
            "metadata twice",
            container("{\"__metadata__\":{},\"__metadata__\":{}}", &[]),
            "`__metadata__` appears twice",
        ),
        ("metadata key twice", container("{\"__metadata__\":{\"a\":\"\",\"a\":\"\"}}", &[]), "has `a` twice"),
        (
            "metadata too long",
            container(&format!("{{\"__metadata__\":{{{many}}}}}"), &[]),
            "more than 1024 entries",
        ),
        (
            "name too long",
            container(&format!("{{\"{}\":1}}", "n".repeat(MAX_NAME + 1)), &[]),
            "a name has 257 bytes",
        ),
        (
            "name with an escape",
            container("{\"a\\u001b[31m\":1}", &[]),
            "the name \"a\\u{1b}[31m\" holds control",
        ),
        (
            "name of 1 MiB",
            container(&format!("{{\"{}\":1}}", "n".repeat(1 << 20)), &[]),
            "a name has 1048576 bytes",
        ),
    ];
    for (label, bytes, expected) in &cases {
        refused(label, bytes, expected);
    }
}

#[test]
fn entries_that_are_wrong() {
    let body = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#""dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}"#)
    };
    let shape = |shape: &str| body("F32", shape, "[0,4]");
    let offsets = |offsets: &str| body("F32", "[1]", offsets);
    let field = |name: &str| format!("{},\"{name}\":1", shape("[1]"));
    let rank = |n: usize| shape(&format!("[{}]", vec!["1"; n].join(",")));
    let cases: [(&str, String, usize, &str); 29] = [
        ("nothing", String::new(), 0, "missing field `dtype`"),
        ("no dtype", r#""shape":[1],"data_offsets":[0,4]"#.into(), 4, "missing field `dtype`"),
        ("no shape", r#""dtype":"F32","data_offsets":[0,4]"#.into(), 4, "missing field `shape`"),
        ("no offsets", r#""dtype":"F32","shape":[1]"#.into(), 4, "missing field `data_offsets`"),
        ("dtype twice", r#""dtype":"F32","dtype":"F32""#.into(), 4, "duplicate field `dtype`"),
        ("shape twice", r#""shape":[1],"shape":[1]"#.into(), 4, "duplicate field `shape`"),
        (
            "offsets twice",
            r#""data_offsets":[0,4],"data_offsets":[0,4]"#.into(),
            4,
            "duplicate field `data_offsets`",
        ),
        ("unknown field", field("extra"), 4, "unknown field `extra`"),
        ("long unknown field", field(&"x".repeat(1 << 20)), 4, "unknown field `xxx"),
        ("unknown dtype", body("F33", "[1]", "[0,4]"), 4, "unknown dtype `F33`"),
        ("lower-case dtype", body("f32", "[1]", "[0,4]"), 4, "unknown dtype `f32`"),
        ("dtype is a number", r#""dtype":32"#.into(), 4, "invalid type: integer `32`"),
        ("shape is a number", shape("1"), 4, "expected a shape"),
        ("negative size", shape("[-1]"), 4, "integer `-1`"),
        ("fractional size", shape("[1.5]"), 4, "floating point `1.5`"),
        ("size of 2^64", shape("[18446744073709551616]"), 4, "invalid type: floating point"),
        ("shape overflows", shape("[4294967296,4294967296]"), 4, "beyond 64 bits"),
        ("bytes overflow", shape("[9223372036854775807]"), 4, "beyond 64 bits"),
        ("rank 9", rank(9), 4, "more than 8 dimensions"),
        ("rank 10^6", rank(1_000_000), 4, "more than 8 dimensions"),
        ("one offset", offsets("[0]"), 4, "invalid length 1"),
        ("three offsets", offsets("[0,4,4]"), 4, "trailing characters"),
        ("negative offset", offsets("[-4,0]"), 4, "integer `-4`"),
        ("offsets reversed", offsets("[4,0]"), 4, "[4, 0] must be in order"),
        ("data too short", body("F32", "[2]", "[0,8]"), 7, "within the data section of 7"),
        ("end of 2^64-1", offsets("[0,18446744073709551615]"), 4, "within the data section"),
        ("too small for the shape", shape("[2]"), 4, "needs 8 bytes, but data_offsets hold 4"),
        ("dtype does not fit", body("BF16", "[1]", "[0,4]"), 4, "[1] of BF16 needs 2 bytes"),
        ("zero size with data", shape("[0]"), 4, "needs 0 bytes, but data_offsets hold 4"),
    ];
    for (label, body, data, expected) in &cases {
        refused(label, &entry(body, *data), expected);
        refused(label, &entry(body, *data), "tensor `w`: ");
    }
    refused("half an F4", &entry(&body("F4", "[3]", "[0,1]"), 1), "no size in whole bytes");
}

#[test]
fn layouts_that_do_not_cover_the_data() {
    let two = |a: [usize; 2], b: [usize; 2], data: usize| {
        let entry = |name, [begin, end]: [usize; 2]| {
            let bytes = end - begin;
            format!(r#""{name}":{{"dtype":"U8","shape":[{bytes}],"data_offsets":[{begin},{end}]}}"#)
        };
        container(&format!("{{{},{}}}", entry("a", a), entry("b", b)), &vec![0; data])
    };
    let twice = r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    let cases = [
        ("overlap", two([0, 8], [4, 12], 12), "tensor `b`: begins at byte 4 and overlaps"),
        ("same place", two([0, 8], [0, 8], 8), "tensor `b`: begins at byte 0 and overlaps"),
        ("one inside the other", two([2, 4], [0, 8], 8), "tensor `a`: begins at byte 2 and overlaps"),
        ("hole", two([0, 4], [6, 8], 8), "tensor `b`: begins at byte 6 and leaves a hole"),
        ("hole at the start", two([8, 12], [4, 8], 12), "tensor `b`: begins at byte 4 and leaves a hole"),
        (
            "bytes at the end",
            two([0, 4], [4, 8], 9),
            "data section has 9 bytes, but the tensors in the header cover 8",
        ),
        ("empty one in the middle", two([0, 8], [4, 4], 8), "tensor `b`: begins at byte 4 and overlaps"),
        ("no tensors, some data", container("{}", &[0; 3]), "data section has 3 bytes"),
        ("name twice", container(twice, &[0; 2]), "tensor `w`: appears twice in the header"),
        (
            "name twice, escaped",
            container(&twice.replacen("\"w\"", "\"\\u0077\"", 1), &[0; 2]),
            "tensor `w`: appears twice",
        ),
    ];
    for (label, bytes, expected) in &cases {
        refused(label, bytes, expected);
    }
    open_bytes(&two([4, 8], [0, 4], 8)).expect("any order of the header is right");
    open_bytes(&two([0, 4], [4, 4], 4)).expect("a tensor without elements takes no room");
}

#[test]
fn a_header_stays_small_in_memory() {
    let fixed = r#""":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1],"data_offsets":[000000,000000]},"#.len();
    let pad = MAX_HEADER as usize / MAX_TENSORS - fixed;
    let entries = |count: usize| {
        let one = |n: usize| {
            let (begin, end) = (4 * n, 4 * n + 4);
            format!(
                r#""{n:0pad$}":{{"dtype":"F32","shape":[1,1,1,1,1,1,1,1],"data_offsets":[{begin},{end}]}}"#
            )
        };
        format!("{{{}}}", (0..count).map(one).collect::<Vec<_>>().join(","))
    };
    let source = open_bytes(&container(&entries(MAX_TENSORS), &vec![0; 4 * MAX_TENSORS])).unwrap();
    let infos = source.tensors.infos.iter();
    let owned =
        infos.map(|i| i.name.capacity() + i.format.capacity() + 8 * i.shape.capacity()).sum::<usize>();
    let held = owned
        + source.tensors.infos.capacity() * size_of::<TensorInfo>()
        + source.tensors.places.capacity() * size_of::<header::Place>()
        + source.by_name.capacity() * size_of::<u32>();
    assert!(held < 16 << 20, "{held} bytes");
    let short = |n: usize| format!(r#""{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let header = format!("{{{}}}", (0..=MAX_TENSORS).map(short).collect::<Vec<_>>().join(","));
    refused("one tensor too many", &container(&header, &[]), "more than 65536 tensors");
}

#[test]
fn every_truncation_is_an_error_and_no_flipped_byte_panics() {
    let good = checkpoint(&[
        ("a", "F32", &[1, 2], f32s(&[1.0, 2.0])),
        ("b", "BF16", &[2], vec![0x80, 0x3f, 0, 0x40]),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(SINGLE);
    for len in 0..good.len() {
        std::fs::write(&path, &good[..len]).unwrap();
        let message = SafetensorsSource::open(&path).expect_err("truncated").to_string();
        assert!(message.contains(SINGLE), "{len}: {message}");
    }
    for at in 0..good.len() {
        for mask in [1, 2, 4, 8, 16, 32, 64, 128, 255] {
            let mut bytes = good.clone();
            bytes[at] ^= mask;
            std::fs::write(&path, &bytes).unwrap();
            let Ok(source) = SafetensorsSource::open(&path) else { continue };
            for info in source.tensors() {
                let mut out = vec![0.0; info.shape.iter().product()];
                // Either outcome is right: a flipped data bit may still be a number.
                let _ = source.read_f32(&info.name, 0, &mut out);
            }
        }
    }
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let fails = |path: &Path, expected: &str| {
        let message = SafetensorsSource::open(path).unwrap_err().to_string();
        assert!(message.contains(&*path.to_string_lossy()) && message.contains(expected), "{message}");
    };
    fails(dir.path(), "holds neither model.safetensors nor model.safetensors.index.json");
    fails(&dir.path().join("gone"), "gone: ");
    fails(Path::new("/dev/zero"), "it must be a regular file");
    let made = std::process::Command::new("mkfifo").arg(dir.path().join(SINGLE)).status().unwrap();
    assert!(made.success());
    fails(dir.path(), "model.safetensors: is a device, a pipe or a socket; it must be a regular file");
    fails(&dir.path().join(SINGLE), "it must be a regular file");
    std::fs::remove_file(dir.path().join(SINGLE)).unwrap();
    std::fs::create_dir(dir.path().join(SINGLE)).unwrap();
    fails(dir.path(), "model.safetensors: is a directory");
    std::fs::remove_dir(dir.path().join(SINGLE)).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join(SINGLE)).unwrap();
    fails(dir.path(), "model.safetensors: No such file");
}

#[test]
fn indices_that_are_wrong() {
    let deep = "[".repeat(100_000);
    let many: Vec<_> = (0..513).map(|n| format!("\"t{n}\":\"s{n}\"")).collect();
    let many = format!("{{{}}}", many.join(","));
    let map = |body: &str| format!("{{\"weight_map\":{body}}}");
    let cases = [
        ("empty", String::new(), "index.json: EOF"),
        ("a list", "[]".into(), "an object with `weight_map`"),
        ("no map", "{}".into(), "field `weight_map`: is missing"),
        ("empty map", map("{}"), "field `weight_map`: is empty"),
        ("map is a list", map("[]"), "`weight_map` as an object"),
        ("map is null", map("null"), "`weight_map` as an object"),
        (
            "map twice",
            "{\"weight_map\":{\"a\":\"1\"},\"weight_map\":{}}".into(),
            "duplicate field `weight_map`",
        ),
        ("tensor twice", map(r#"{"a":"1.st","a":"1.st"}"#), "field `weight_map.a`: appears twice"),
        ("shard is a number", map(r#"{"a":1}"#), "field `weight_map.a`: invalid type: integer"),
        ("shard above", map(r#"{"a":"../1.st"}"#), "`weight_map.a`: shard `../1.st` must be the plain name"),
        ("shard is above", map(r#"{"a":".."}"#), "`weight_map.a`: shard `..` must be"),
        ("shard is here", map(r#"{"a":"."}"#), "`weight_map.a`: shard `.` must be"),
        ("shard is absolute", map(r#"{"a":"/etc/passwd"}"#), "`weight_map.a`: shard `/etc/passwd` must be"),
        ("shard below", map(r#"{"a":"sub/1.st"}"#), "`weight_map.a`: shard `sub/1.st` must be"),
        ("shard with a slash behind", map(r#"{"a":"1.st/"}"#), "`weight_map.a`: shard `1.st/` must be"),
        ("shard without a name", map(r#"{"a":""}"#), "`weight_map.a`: shard `` must be"),
        (
            "shard with a zero byte",
            map("{\"a\":\"1\\u0000.st\"}"),
            "`weight_map.a`: the name \"1\\0.st\" holds control",
        ),
        ("too many shards", map(&many), "more than 512 shards"),
        ("deep", format!("{{\"metadata\":{deep}"), "index.json: "),
        ("text behind", map(r#"{"a":"1.st"}"#) + " x", "trailing characters"),
        ("missing shard", map(r#"{"a":"1.st","b":"3.st"}"#), "3.st: No such file"),
        ("shard is a directory", map(r#"{"a":"1.st","b":"dir"}"#), "dir: is a directory"),
        (
            "not there",
            map(r#"{"a":"1.st","c":"1.st"}"#),
            "1.st: tensor `c`: is missing, but model.safetensors.index",
        ),
        ("in the other shard", map(r#"{"a":"2.st","b":"1.st"}"#), "2.st: tensor `a`: is in "),
        ("in two shards", map(r#"{"a":"1.st","b":"twin.st"}"#), "twin.st: tensor `a`: is also in "),
        ("broken shard", map(r#"{"a":"1.st","b":"bad.st"}"#), "bad.st: header length"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let shard = |name: &str, tensor: &str| {
        let bytes = checkpoint(&[(tensor, "F32", &[1], f32s(&[1.0]))]);
        std::fs::write(dir.path().join(name), bytes).unwrap();
    };
    shard("1.st", "a");
    shard("2.st", "b");
    shard("twin.st", "a");
    std::fs::write(dir.path().join("bad.st"), [0xff; 32]).unwrap();
    std::fs::create_dir(dir.path().join("dir")).unwrap();
    for (label, text, expected) in cases {
        std::fs::write(dir.path().join(INDEX), text).unwrap();
        let message = SafetensorsSource::open(dir.path()).expect_err(label).to_string();
        assert!(message.contains(expected), "{label}: {message}");
        assert!(
            message.contains(&*dir.path().to_string_lossy()) && message.len() < 800,
            "{label}: {message}"
        );
    }
    let file = std::fs::File::create(dir.path().join(INDEX)).unwrap();
    file.set_len((16 << 20) + 1).unwrap();
    let message = SafetensorsSource::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("index.json: has 16777217 bytes; at most"), "{message}");
}
