//! Lists as one text each: what an upstream writes takes no more memory here than its bytes.

use std::fmt;

use bytes::Bytes;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use super::{Page, Tag};

/// Tags in lexical order, each once.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(from = "UnsortedTags")]
pub struct Tags(
    /// What an array of JSON has between its brackets, without spaces: no character of a tag is escaped there.
    Bytes,
);

/// The longest tag, and its quotes.
const LONGEST: usize = 130;

impl Tags {
    /// Each tag.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &str> {
        let quoted = self.0.split(|&byte| byte == b',').filter_map(|quoted| str::from_utf8(quoted).ok());
        quoted.map(|quoted| quoted.trim_matches('"')).filter(|tag| !tag.is_empty())
    }

    /// The array in JSON, without its brackets.
    pub fn json(&self) -> &Bytes {
        &self.0
    }

    /// Those of a page, which share the bytes, and whether more follow it.
    pub fn page(&self, page: &Page) -> (Self, bool) {
        let rest = self.after(page.last.as_deref().unwrap_or_default());
        let mut commas = rest.iter().enumerate().filter(|&(_, &byte)| byte == b',').map(|(at, _)| at);
        let end = page.size().checked_sub(1).map_or(0, |skipped| commas.nth(skipped).unwrap_or(rest.len()));
        (Self(rest.slice(..end)), end > 0 && end < rest.len())
    }

    /// The tags after `last`, which need not be one of them. Halves the text until it has found where they begin.
    fn after(&self, last: &str) -> Bytes {
        let (mut low, mut high, last) = (0, self.0.len(), format!("\"{last}\""));
        while low < high {
            let (before, _) = self.0.split_at(low + (high - low) / 2);
            let start = before.iter().rposition(|&byte| byte == b',').map_or(0, |comma| comma + 1);
            let tag = self.0.iter().skip(start).take_while(|&&byte| byte != b',');
            let next = start + tag.clone().count() + 1;
            (low, high) = if tag.le(last.as_bytes()) { (next, high) } else { (low, start) };
        }
        self.0.slice(low.min(self.0.len())..)
    }
}

impl Serialize for Tags {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// Tags in any order. What is no tag is left out when it is read, because it could not be pulled.
#[derive(Debug, Default)]
pub struct UnsortedTags(
    /// Like [`Tags`], and each with a comma after it.
    String,
);

impl UnsortedTags {
    /// Adds those of another page.
    pub fn extend(&mut self, page: &Self) {
        self.0.push_str(&page.0);
    }
}

impl From<UnsortedTags> for Tags {
    fn from(UnsortedTags(mut text): UnsortedTags) -> Self {
        let tags = || text.split_inclusive(',');
        if !tags().is_sorted_by(|one, next| one < next) {
            // Where each begins: four bytes for each, where a string of its own would take fifty.
            let mut starts = Vec::with_capacity(tags().count() + 1);
            let ends = text.match_indices(',').filter_map(|(comma, _)| u32::try_from(comma + 1).ok());
            starts.extend(std::iter::once(0).chain(ends));
            starts.pop();
            // A tag is compared with what follows it: its quote, which comes before all characters of tags.
            let from = |start: u32| text.as_bytes().get(start as usize..).unwrap_or_default();
            let window = |start: u32| from(start).get(..LONGEST).unwrap_or(from(start));
            let quoted = |start: u32| text.get(start as usize..).and_then(|rest| rest.split_inclusive(',').next());
            starts.sort_unstable_by(|&one, &other| window(one).cmp(window(other)));
            starts.dedup_by(|one, other| quoted(*one) == quoted(*other));
            let mut sorted = String::with_capacity(text.len());
            sorted.extend(starts.into_iter().filter_map(quoted));
            text = sorted;
        }
        text.pop();
        Self(text.into())
    }
}

impl<'de> Deserialize<'de> for UnsortedTags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let array = <&RawValue>::deserialize(deserializer)?;
        let (mut text, mut read) = (String::with_capacity(array.get().len()), Ok(()));
        let items = each(array, |item| match serde_json::from_str::<String>(item.get()) {
            Ok(tag) if Tag::is_valid(&tag) => text.extend(["\"", &tag, "\","]),
            Ok(_) => {}
            Err(error) => read = Err(error),
        });
        items.and(read).map_err(serde::de::Error::custom)?;
        Ok(Self(text))
    }
}

/// The descriptors of an index with all their fields, as upstream wrote them (image-spec 1.1, "Descriptor").
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Descriptors(
    /// An array of objects in JSON.
    Bytes,
);

impl Default for Descriptors {
    fn default() -> Self {
        Self(Bytes::from_static(b"[]"))
    }
}

impl Descriptors {
    /// Those of an index, which share its bytes. An empty list may be `null`, but not missing: an error is no empty list.
    pub fn of_index(bytes: &Bytes) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        struct Index<'a> {
            #[serde(borrow)]
            manifests: &'a RawValue,
        }
        let Index { manifests } = serde_json::from_slice(bytes)?;
        if manifests.get() == "null" { Ok(Self::default()) } else { Self::within(bytes, manifests) }
    }

    /// Takes the text of an array out of the bytes that it lies in. An array of anything but objects is refused.
    fn within(bytes: &Bytes, array: &RawValue) -> serde_json::Result<Self> {
        let text = bytes.slice_ref(array.get().as_bytes());
        let mut objects = true;
        each(array, |descriptor| objects &= descriptor.get().starts_with('{'))?;
        if objects { Ok(Self(text)) } else { Err(serde::de::Error::custom("a descriptor is no object")) }
    }

    /// Those of all pages, of which `read` bytes were read. A page that has most of them is not copied; else the bytes
    /// that the pages lie in are left behind.
    pub fn joined(pages: &[Self], read: usize) -> Self {
        if let [page] = pages
            && page.0.len() >= read / 2
        {
            return page.clone();
        }
        let mut array = Vec::with_capacity(2 + pages.iter().map(|page| page.0.len()).sum::<usize>());
        for page in pages.iter().filter(|page| !page.is_empty()) {
            array.push(if array.is_empty() { b'[' } else { b',' });
            array.extend_from_slice(inside(&page.0).unwrap_or_default());
        }
        if array.is_empty() {
            return Self::default();
        }
        array.push(b']');
        Self(array.into())
    }

    /// All of them, to answer with.
    pub fn all(self) -> Selected {
        let inside = (1, position(self.0.len()).saturating_sub(1));
        Selected { array: self.0, runs: vec![inside] }
    }

    /// Only those with this `artifactType`.
    pub fn of_type(self, artifact_type: &str) -> Selected {
        #[derive(Deserialize)]
        struct Descriptor {
            #[serde(rename = "artifactType")]
            artifact_type: Option<String>,
        }
        let wanted = |text: &str| {
            let descriptor = serde_json::from_str::<Descriptor>(text);
            descriptor.is_ok_and(|descriptor| descriptor.artifact_type.as_deref() == Some(artifact_type))
        };
        let (mut runs, mut goes_on) = (Vec::<(u32, u32)>::new(), false);
        let read = serde_json::from_slice(&self.0).and_then(|all| {
            each(all, |descriptor| {
                let text = descriptor.get();
                let from = text.as_ptr().addr() - self.0.as_ptr().addr();
                let beside_the_last = std::mem::replace(&mut goes_on, wanted(text));
                match runs.last_mut().filter(|_| beside_the_last) {
                    _ if !goes_on => {}
                    Some(run) => run.1 = position(from + text.len()),
                    None => runs.push((position(from), position(from + text.len()))),
                }
            })
        });
        if read.is_err() {
            runs.clear();
        }
        Selected { array: self.0, runs }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        inside(&self.0).is_none_or(|inside| inside.trim_ascii().is_empty())
    }

    /// The array in JSON.
    pub fn json(&self) -> &Bytes {
        &self.0
    }
}

/// Some descriptors of a list. They stay in its bytes: whatever many clients ask for takes no copy of it.
#[derive(Clone, Debug)]
pub struct Selected {
    array: Bytes,
    /// Where neighbours lie in the array, each from its first byte to behind its last. A list has 4 MiB at most.
    runs: Vec<(u32, u32)>,
}

impl Selected {
    /// What stands between the brackets of their array in JSON, part by part.
    pub fn json(self) -> impl Iterator<Item = Bytes> + Clone {
        let Self { array, runs } = self;
        runs.into_iter().enumerate().flat_map(move |(number, (from, to))| {
            let comma: &[u8] = if number == 0 { b"" } else { b"," };
            [Bytes::from_static(comma), array.slice(from as usize..to as usize)]
        })
    }
}

fn position(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// What an array has between its brackets.
fn inside(array: &[u8]) -> Option<&[u8]> {
    array.strip_prefix(b"[")?.strip_suffix(b"]")
}

/// Shows each item of an array, one after the other, and keeps none.
fn each<'de>(array: &'de RawValue, show: impl FnMut(&'de RawValue)) -> serde_json::Result<()> {
    struct Items<F>(F);

    impl<'de, F: FnMut(&'de RawValue)> Visitor<'de> for Items<F> {
        type Value = ();

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
            while let Some(item) = list.next_element()? {
                (self.0)(item);
            }
            Ok(())
        }
    }

    serde_json::Deserializer::from_str(array.get()).deserialize_seq(Items(show))
}

impl Serialize for Descriptors {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let array: &RawValue = serde_json::from_slice(&self.0).map_err(serde::ser::Error::custom)?;
        array.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Descriptors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let array = Box::<RawValue>::deserialize(deserializer)?;
        let bytes = Bytes::copy_from_slice(array.get().as_bytes());
        let array = serde_json::from_slice(&bytes).map_err(serde::de::Error::custom)?;
        Self::within(&bytes, array).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(json: &str) -> Tags {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn tags_are_sorted_each_once_and_what_is_no_tag_is_left_out() {
        for (json, sorted) in [
            (r#"["v2","b","V1","b","10","not a tag","9","-x","","bb","v2"]"#, r#"["10","9","V1","b","bb","v2"]"#),
            (r#"["a","a"]"#, r#"["a"]"#),
            (r#"["a","b"]"#, r#"["a","b"]"#),
            (r#"["\u0062\u0062","\n"]"#, r#"["bb"]"#),
            ("[]", "[]"),
        ] {
            let sorted_tags = tags(json);
            assert_eq!(serde_json::to_string(&sorted_tags).unwrap(), sorted);
            assert_eq!(format!("[{}]", str::from_utf8(sorted_tags.json()).unwrap()), sorted);
        }
        let mut pages = UnsortedTags::default();
        for page in [r#"["c","a"]"#, r#"["b","a"]"#] {
            pages.extend(&serde_json::from_str(page).unwrap());
        }
        assert_eq!(Tags::from(pages), tags(r#"["a","b","c"]"#));
    }

    #[test]
    fn a_page_is_cut_from_the_list_of_all_tags() {
        let page = |n: Option<usize>, last: Option<&str>| {
            let (page, more) = tags(r#"["A","B","a","b","c"]"#).page(&Page { n, last: last.map(str::to_owned) });
            (page.iter().collect::<String>(), more)
        };
        let expected = |tags: &str, more| (tags.to_owned(), more);
        assert_eq!(page(None, None), expected("ABabc", false));
        assert_eq!(page(Some(2), None), expected("AB", true));
        assert_eq!(page(Some(2), Some("B")), expected("ab", true));
        assert_eq!(page(Some(2), Some("b")), expected("c", false));
        assert_eq!(page(Some(3), Some("B")), expected("abc", false), "it ends with the last tag");
        assert_eq!(page(Some(usize::MAX), Some("AA")), expected("Babc", false), "the last one need not be a tag");
        assert_eq!(page(Some(1), Some("z")), expected("", false));
        assert_eq!(page(Some(0), None), expected("", false), "no page comes after an empty one");
    }

    #[test]
    fn the_tags_after_each_tag_are_found_wherever_it_stands() {
        let names: Vec<String> =
            (0..300).map(|number| format!("{number:03}{}", "x".repeat(number % 128 / 2))).collect();
        let all = tags(&serde_json::to_string(&names).unwrap());
        for (number, name) in names.iter().enumerate() {
            let (rest, _) = all.page(&Page { n: None, last: Some(name.clone()) });
            assert!(rest.iter().eq(&names[number + 1..]), "{name}");
        }
    }

    fn descriptors(json: &str) -> serde_json::Result<Descriptors> {
        serde_json::from_str(json)
    }

    #[test]
    fn descriptors_stay_as_they_are_written() {
        for json in ["[]", "[ ]", r#"[{"a":1e999,"\ud800":"\ud800"}]"#, "[ {},\n{\"size\": 1.50} ]"] {
            let read = descriptors(json).unwrap();
            assert_eq!((read.json(), serde_json::to_string(&read).unwrap().as_str()), (&Bytes::from(json), json));
            assert_eq!(read.is_empty(), json.len() < 4);
        }
        for json in ["[1]", "[null]", "[[]]", "{}", "null", "[{}", "[{},]"] {
            assert!(descriptors(json).is_err(), "{json}");
        }
        let pages = ["[{\"a\":1},{}]", "[]", "[ {} ]", "[ ]"].map(|page| descriptors(page).unwrap());
        assert_eq!(Descriptors::joined(&pages, 40), descriptors("[{\"a\":1},{}, {} ]").unwrap());
        assert_eq!(Descriptors::joined(&[], 40), Descriptors::default());
        let shares = |page: &Descriptors, read| {
            Descriptors::joined(std::slice::from_ref(page), read).0.as_ptr() == page.0.as_ptr()
        };
        let page = descriptors("[{\"a\":1}]").unwrap();
        assert!(shares(&page, 18) && !shares(&page, 200), "what is most of its page stays there");
    }

    #[test]
    fn descriptors_are_filtered_by_what_each_says_itself() {
        let json = r#"[ {"artifactType":"a","n":1}, {"artifactType":"a"},{"artifactType":"b"},{"x":{"artifactType":"a"}},
            {"artifactType":null},{"artifactType":["a"]},{"artifactType":"\u0061"} ]"#;
        let found = descriptors(json).unwrap();
        let text = |selected: Selected| String::from_utf8(selected.json().flatten().collect()).unwrap();
        assert_eq!(
            text(found.clone().of_type("a")),
            r#"{"artifactType":"a","n":1}, {"artifactType":"a"},{"artifactType":"\u0061"}"#
        );
        assert_eq!(text(found.clone().of_type("c")), "");
        assert_eq!(format!("[{}]", text(found.all())), json);
        assert_eq!(text(Descriptors::default().all()), "");
    }
}
