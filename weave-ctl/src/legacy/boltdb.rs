//! Reads one bucket of a BoltDB file, the format of the original's state (wire.md 10.3). All numbers in it are
//! little-endian. Nothing is written.
//!
//! A page is looked at no more than once and the number of items is bounded, so that no file, however damaged,
//! keeps us busy.

use std::collections::{BTreeMap, BTreeSet};

/// Most items taken from a bucket; the original's has a handful.
const MAX_ITEMS: usize = 1 << 16;
const PAGE_HEADER: usize = 16;
const ELEMENT: usize = 16;
const BUCKET_HEADER: usize = 16;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const META: u16 = 4;
/// Flag of a leaf element whose value is a bucket.
const IS_BUCKET: u32 = 1;
const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;
/// Bytes of the meta record before its checksum.
const CHECKED: usize = 56;
/// What a machine may have had as page size, in bytes.
const PAGE_SIZES: [usize; 5] = [4096, 8192, 16384, 32768, 65536];

/// The file cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BoltError {
    /// Neither of the two meta pages is valid.
    #[error("it is no BoltDB file")]
    NotBolt,
    /// Something points out of the file, or in circles, or has the wrong kind.
    #[error("page {0} is damaged")]
    Page(u64),
    /// There is no such bucket.
    #[error("it has no bucket of that name")]
    NoBucket,
    /// More than [`MAX_ITEMS`].
    #[error("it has too many items")]
    TooMany,
}

/// Keys and values of the top-level bucket `name`; buckets inside it are left out.
pub fn bucket<'a>(file: &'a [u8], name: &[u8]) -> Result<BTreeMap<&'a [u8], &'a [u8]>, BoltError> {
    let (page_size, root) = newest_meta(file).ok_or(BoltError::NotBolt)?;
    let mut reader = Reader {
        file,
        page_size,
        seen: BTreeSet::new(),
        items: Vec::new(),
    };
    reader.walk(root)?;
    let items = std::mem::take(&mut reader.items);
    let found = items.into_iter().find(|item| item.key == name && item.is_bucket);
    let value = found.ok_or(BoltError::NoBucket)?.value;
    match u64_at(value, 0) {
        // The bucket is so small that its only page is here.
        Some(0) => {
            let page = value.get(BUCKET_HEADER..).ok_or(BoltError::NoBucket)?;
            reader.page(0, page)?;
        }
        Some(root) => reader.walk(root)?,
        None => return Err(BoltError::NoBucket),
    }
    let plain = reader.items.into_iter().filter(|item| !item.is_bucket);
    Ok(plain.map(|item| (item.key, item.value)).collect())
}

struct Item<'a> {
    key: &'a [u8],
    value: &'a [u8],
    is_bucket: bool,
}

struct Reader<'a> {
    file: &'a [u8],
    page_size: usize,
    seen: BTreeSet<u64>,
    items: Vec<Item<'a>>,
}

impl<'a> Reader<'a> {
    /// Collects the items of the leaves below page `root`.
    fn walk(&mut self, root: u64) -> Result<(), BoltError> {
        let mut todo = vec![root];
        while let Some(id) = todo.pop() {
            let damaged = BoltError::Page(id);
            if !self.seen.insert(id) {
                return Err(damaged);
            }
            let start = usize::try_from(id)
                .ok()
                .and_then(|id| id.checked_mul(self.page_size));
            let from_here = start.and_then(|start| self.file.get(start..)).ok_or(damaged)?;
            if u64_at(from_here, 0) != Some(id) {
                return Err(damaged);
            }
            // A page with large values goes on in those behind it.
            let pages = u32_at(from_here, 12).and_then(|more| usize::try_from(more).ok()?.checked_add(1));
            let size = pages.and_then(|pages| pages.checked_mul(self.page_size));
            let page = size.and_then(|size| from_here.get(..size)).ok_or(damaged)?;
            todo.extend(self.page(id, page)?);
        }
        Ok(())
    }

    /// Collects the items of a leaf, or gives the pages below a branch.
    fn page(&mut self, id: u64, page: &'a [u8]) -> Result<Vec<u64>, BoltError> {
        let damaged = BoltError::Page(id);
        let (flags, count) = u16_at(page, 8).zip(u16_at(page, 10)).ok_or(damaged)?;
        let mut below = Vec::new();
        for index in 0..usize::from(count) {
            let element = page.get(PAGE_HEADER + index * ELEMENT..).ok_or(damaged)?;
            match flags {
                BRANCH => below.push(u64_at(element, 8).ok_or(damaged)?),
                LEAF if self.items.len() < MAX_ITEMS => self.items.push(item(element).ok_or(damaged)?),
                LEAF => return Err(BoltError::TooMany),
                _ => return Err(damaged),
            }
        }
        Ok(below)
    }
}

/// A leaf's element; positions in it count from its own start.
fn item(element: &[u8]) -> Option<Item<'_>> {
    let field = |at| usize::try_from(u32_at(element, at)?).ok();
    let (key, size) = (field(4)?, field(8)?);
    let value = key.checked_add(size)?;
    Some(Item {
        key: element.get(key..value)?,
        value: element.get(value..value.checked_add(field(12)?)?)?,
        is_bucket: u32_at(element, 0)? & IS_BUCKET != 0,
    })
}

/// Page size and root page of the valid meta page with the higher transaction number.
fn newest_meta(file: &[u8]) -> Option<(usize, u64)> {
    let metas = PAGE_SIZES.iter().flat_map(|size| [(*size, 0), (*size, *size)]);
    let valid = metas.filter_map(|(size, start)| meta(file.get(start..)?, size));
    valid
        .max_by_key(|meta| meta.2)
        .map(|(size, root, _)| (size, root))
}

/// Page size, root page and transaction number, if this is a meta page for that page size.
fn meta(page: &[u8], page_size: usize) -> Option<(usize, u64, u64)> {
    let record = page.get(PAGE_HEADER..)?;
    let right = u16_at(page, 8)? == META
        && u32_at(record, 0)? == MAGIC
        && u32_at(record, 4)? == VERSION
        && usize::try_from(u32_at(record, 8)?).ok()? == page_size
        && u64_at(record, CHECKED)? == fnv1a(record.get(..CHECKED)?);
    right.then_some((page_size, u64_at(record, 16)?, u64_at(record, 48)?))
}

fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: &[u8] = include_bytes!("testdata/weavedata.db");

    /// A page with a header and these elements, whose data follow them.
    fn page(id: u64, flags: u16, elements: &[(u32, &[u8], Vec<u8>)]) -> Vec<u8> {
        let mut page = id.to_le_bytes().to_vec();
        page.extend(flags.to_le_bytes());
        page.extend(u16::try_from(elements.len()).unwrap().to_le_bytes());
        page.extend(0u32.to_le_bytes());
        let mut data: Vec<u8> = Vec::new();
        for (index, (first, key, value)) in elements.iter().enumerate() {
            let position = u32::try_from((elements.len() - index) * ELEMENT + data.len()).unwrap();
            let size = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap().to_le_bytes();
            match flags {
                // position, key size, page
                BRANCH => [position.to_le_bytes(), size(key)]
                    .iter()
                    .for_each(|w| page.extend(w)),
                _ => [
                    first.to_le_bytes(),
                    position.to_le_bytes(),
                    size(key),
                    size(value),
                ]
                .iter()
                .for_each(|w| page.extend(w)),
            }
            if flags == BRANCH {
                page.extend(value);
                data.extend(*key);
            } else {
                data.extend(*key);
                data.extend(value);
            }
        }
        page.extend(data);
        page
    }

    fn meta_page(id: u64, page_size: u32, root: u64, transaction: u64) -> Vec<u8> {
        let mut record = Vec::new();
        [MAGIC, VERSION, page_size, 0]
            .iter()
            .for_each(|n| record.extend(n.to_le_bytes()));
        [root, 0, 0, 9, transaction]
            .iter()
            .for_each(|n| record.extend(n.to_le_bytes()));
        record.extend(fnv1a(&record).to_le_bytes());
        let mut page = page(id, META, &[]);
        page.extend(record);
        page
    }

    fn file(page_size: usize, pages: Vec<Vec<u8>>) -> Vec<u8> {
        let padded = pages.into_iter().flat_map(|mut page| {
            page.resize(page.len().next_multiple_of(page_size), 0);
            page
        });
        padded.collect()
    }

    fn bucket_at(root: u64) -> Vec<u8> {
        [root.to_le_bytes(), [0; 8]].concat()
    }

    #[test]
    fn a_file_of_the_original() {
        let items = bucket(FILE, b"top").unwrap();
        let keys: Vec<_> = items.keys().map(|key| String::from_utf8_lossy(key)).collect();
        assert_eq!(
            keys,
            [
                "directPeers",
                "flag:peer-reclaim",
                "ownedAddresses",
                "peername",
                "ring",
                "version"
            ]
        );
        assert_eq!(items[b"version".as_slice()], [1, 0]);
        assert_eq!(
            items[b"peername".as_slice()],
            [9, 6, 0, 0xfa, 0x7a, 0, 0, 0, 0, 1]
        );
        assert_eq!(bucket(FILE, b"other"), Err(BoltError::NoBucket));
    }

    #[test]
    fn branches_large_pages_and_the_newer_meta() {
        let long = vec![7; 9000];
        let mut large = page(5, LEAF, &[(0, b"c", long.clone())]);
        large[12..16].copy_from_slice(&1u32.to_le_bytes());
        let size = 8192;
        let pages = vec![
            meta_page(0, 8192, 3, 8),
            // Newer, but half written.
            [meta_page(1, 8192, 99, 9), vec![]].concat(),
            page(2, LEAF, &[(IS_BUCKET, b"top", bucket_at(3))]),
            page(3, LEAF, &[(0, b"top", vec![]), (IS_BUCKET, b"top", bucket_at(4))]),
            page(
                4,
                BRANCH,
                &[
                    (0, b"a", 7u64.to_le_bytes().to_vec()),
                    (0, b"c", 5u64.to_le_bytes().to_vec()),
                ],
            ),
            large,
            page(
                7,
                LEAF,
                &[
                    (0, b"a", vec![1]),
                    (IS_BUCKET, b"inner", bucket_at(0)),
                    (0, b"b", vec![]),
                ],
            ),
        ];
        let mut bytes = file(size, pages);
        bytes[size + PAGE_HEADER + 20] ^= 1;
        let items = bucket(&bytes, b"top").unwrap();
        let wanted: BTreeMap<&[u8], &[u8]> = [
            (&b"a"[..], &[1][..]),
            (&b"b"[..], &[][..]),
            (&b"c"[..], &long[..]),
        ]
        .into();
        assert_eq!(items, wanted);
    }

    #[test]
    fn circles_and_wrong_pages_are_errors() {
        let with = |page_3: Vec<u8>| {
            let top = page(2, LEAF, &[(IS_BUCKET, b"top", bucket_at(3))]);
            file(
                4096,
                vec![meta_page(0, 4096, 2, 1), meta_page(1, 4096, 2, 2), top, page_3],
            )
        };
        let to = |id: u64| page(3, BRANCH, &[(0, b"a", id.to_le_bytes().to_vec())]);
        assert_eq!(bucket(&with(to(3)), b"top"), Err(BoltError::Page(3)));
        assert_eq!(bucket(&with(to(2)), b"top"), Err(BoltError::Page(2)));
        assert_eq!(bucket(&with(to(77)), b"top"), Err(BoltError::Page(77)));
        assert_eq!(
            bucket(&with(to(u64::MAX)), b"top"),
            Err(BoltError::Page(u64::MAX))
        );
        assert_eq!(
            bucket(&with(page(3, 16, &[(0, b"", vec![])])), b"top"),
            Err(BoltError::Page(3))
        );
        assert_eq!(bucket(b"somebody's notes", b"top"), Err(BoltError::NotBolt));
        assert_eq!(bucket(&[], b"top"), Err(BoltError::NotBolt));
    }

    proptest! {
        #[test]
        fn no_damage_makes_it_panic(changes in prop::collection::vec((0..24_576usize, any::<u8>()), 1..20), end in 0..FILE.len()) {
            let mut bytes = FILE.to_vec();
            changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
            let _ = bucket(&bytes, b"top");
            let _ = bucket(&bytes[..end], b"top");
        }
    }
}
