//! Reads JSON front to back, piece by piece, borrowing from the text: no tree, no copies, numbers as they are written.
//!
//! Answers of Amazon and clear parts of events are read by it, several dozen short names and texts each, so it is made for those: eight
//! bytes of a string are looked at together, and what has no escapes is handed out as it lies there. The grammar is RFC 8259's and
//! nothing more (no `NaN`, no comments, no trailing commas); every piece that is passed is checked. An error is a kind and a place,
//! never a piece of the text.

/// What kind of error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The text ends too early.
    Truncated,
    /// Something follows the value.
    Trailing,
    /// Nested deeper than [`SKIP_DEPTH_MAX`] where it is passed over.
    TooDeep,
    /// Anything else that is no JSON.
    Syntax,
}

/// Text that is not JSON, and at which byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not JSON at byte {at}: {fault:?}")]
pub struct JsonError {
    /// What is wrong.
    pub fault: Fault,
    /// Bytes from the start of the text.
    pub at: u32,
}

/// What the next value is, by its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool,
    /// A number.
    Number,
    /// A string.
    String,
    /// An array.
    Array,
    /// An object.
    Object,
    /// No value begins like this.
    Nothing,
}

/// Deepest nesting that [`Json::skip`] follows. Chosen: far more than any of our documents, far less than a stack.
pub const SKIP_DEPTH_MAX: usize = 128;
/// Most digits of a number. Chosen: no amount has them, and converting more is slow in many languages (CPython refuses at the same).
pub const NUMBER_BYTES_MAX: usize = 4_300;

/// A string by its place between its quotes; [`Json::raw`] has the text. One number, so that it travels in a register: as several fields
/// that are written one by one and read at once, each string cost a dozen stalled cycles, a third of all the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted(u64);

/// The highest bit of a length: the string has escapes.
const ESCAPED: u32 = 1 << 31;

impl Quoted {
    /// The string of `body[from..to]`.
    #[inline]
    const fn new(from: usize, to: usize, is_escaped: bool) -> Self {
        let escaped = if is_escaped { ESCAPED as u64 } else { 0 };
        Self((place(from) as u64) << 32 | place(to - from) as u64 | escaped)
    }

    /// Where it begins, in bytes from the start of the text.
    #[inline]
    #[must_use]
    pub const fn at(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Its length between the quotes, in bytes.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the length is the lower half")]
    pub const fn bytes(self) -> u32 {
        self.0 as u32 & !ESCAPED
    }

    /// Whether it has escapes; they are well formed.
    #[inline]
    #[must_use]
    pub const fn is_escaped(self) -> bool {
        self.0 & ESCAPED as u64 != 0
    }
}

/// Appends `raw`, a string as it stands between its quotes with well-formed escapes, with its escapes undone.
pub fn unescape(raw: &str, out: &mut Vec<u8>) {
    let mut rest = raw;
    while let Some((plain, escape)) = rest.split_once('\\') {
        out.extend_from_slice(plain.as_bytes());
        let mut chars = escape.chars();
        let decoded = match chars.next() {
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => {
                let mut unit = four_hex(chars.as_str().as_bytes()).unwrap_or_default();
                chars = chars.as_str().get(4..).unwrap_or_default().chars();
                if let 0xd800..0xdc00 = unit {
                    let low = chars.as_str().get(2..6).and_then(|hex| four_hex(hex.as_bytes())).unwrap_or_default();
                    chars = chars.as_str().get(6..).unwrap_or_default().chars();
                    unit = 0x1_0000 + ((unit - 0xd800) << 10) + (low & 0x3ff);
                }
                char::from_u32(unit).unwrap_or_default()
            }
            // Quote, backslash and slash stand for themselves; nothing else was let through.
            other => other.unwrap_or_default(),
        };
        out.extend_from_slice(decoded.encode_utf8(&mut [0; 4]).as_bytes());
        rest = chars.as_str();
    }
    out.extend_from_slice(rest.as_bytes());
}

/// A reader of the text `'j`.
#[derive(Debug, Clone)]
pub struct Json<'j> {
    text: &'j str,
    body: &'j [u8],
    at: usize,
}

type Read<T> = Result<T, JsonError>;

impl<'j> Json<'j> {
    /// Begins at the first byte of `text`. One of 2 GiB or more is past every limit of ours: it reads as one that ends at once.
    #[must_use]
    pub const fn new(text: &'j str) -> Self {
        let text = if text.len() < ESCAPED as usize { text } else { "" };
        Self { text, body: text.as_bytes(), at: 0 }
    }

    /// The text of a string that was read, as it stands between its quotes.
    #[inline]
    #[must_use]
    pub fn raw(&self, quoted: Quoted) -> &'j str {
        let at = quoted.at() as usize;
        self.text.get(at..at + quoted.bytes() as usize).unwrap_or_default()
    }

    /// Bytes read so far; after [`Json::peek`] the next value begins there.
    #[must_use]
    pub const fn at(&self) -> usize {
        self.at
    }

    /// What comes next.
    ///
    /// # Errors
    /// [`JsonError`] where the text ends.
    #[inline]
    pub fn peek(&mut self) -> Read<Next> {
        Ok(match self.token()? {
            b'"' => Next::String,
            b'{' => Next::Object,
            b'[' => Next::Array,
            b'-' | b'0'..=b'9' => Next::Number,
            b'n' => Next::Null,
            b't' | b'f' => Next::Bool,
            _ => Next::Nothing,
        })
    }

    /// Reads the null, true or false that comes next.
    ///
    /// # Errors
    /// [`JsonError`].
    pub fn word(&mut self) -> Read<()> {
        let rest = self.body.get(self.at..).unwrap_or_default();
        for word in [b"null".as_slice(), b"true", b"false"] {
            if rest.starts_with(word) {
                self.at += word.len();
                return Ok(());
            }
            if !rest.is_empty() && word.starts_with(rest) {
                return Err(self.error(Fault::Truncated, self.body.len()));
            }
        }
        Err(self.error(Fault::Syntax, self.at))
    }

    /// Reads the number that comes next, as it is written.
    ///
    /// # Errors
    /// [`JsonError`].
    pub fn number(&mut self) -> Read<&'j str> {
        let from = self.at;
        self.at += usize::from(self.is(b'-'));
        match self.byte() {
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        if self.is(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if self.is(b'e') || self.is(b'E') {
            self.at += 1;
            self.at += usize::from(self.is(b'+') || self.is(b'-'));
            self.digits()?;
        }
        if self.at - from > NUMBER_BYTES_MAX {
            return Err(self.error(Fault::Syntax, from));
        }
        Ok(self.text.get(from..self.at).unwrap_or_default())
    }

    /// Reads the string that comes next.
    ///
    /// # Errors
    /// [`JsonError`].
    #[inline(always)]
    pub fn string(&mut self) -> Read<Quoted> {
        let from = self.at + 1;
        let mut at = from;
        loop {
            // Behind the last eight bytes of the text no string of ours ends: what is left is looked at byte by byte.
            let Some(eight) = self.body.get(at..at + 8).and_then(<[u8]>::first_chunk) else { return self.string_slowly(from, at) };
            let found = stops(u64::from_le_bytes(*eight));
            if found == 0 {
                at += 8;
                continue;
            }
            at += (found.trailing_zeros() / 8) as usize;
            if self.body.get(at) != Some(&b'"') {
                return self.string_slowly(from, at);
            }
            self.at = at + 1;
            return Ok(Quoted::new(from, at, false));
        }
    }

    /// The rest of a string with escapes, control characters, or the end of the text in it; `from` its start, `at` where to go on.
    #[cold]
    fn string_slowly(&mut self, from: usize, mut at: usize) -> Read<Quoted> {
        let mut escaped = false;
        loop {
            match self.body.get(at) {
                None => return Err(self.error(Fault::Truncated, self.body.len())),
                Some(b'"') => break,
                Some(0..0x20) => return Err(self.error(Fault::Syntax, at)),
                Some(b'\\') => {
                    escaped = true;
                    at = self.escape(at + 1)?;
                }
                Some(_) => at += 1,
            }
        }
        self.at = at + 1;
        Ok(Quoted::new(from, at, escaped))
    }

    /// Checks the escape whose backslash stands before `at`; gives back where it ends.
    fn escape(&self, at: usize) -> Read<usize> {
        let unit = |at: usize| match self.body.get(at..at + 4) {
            None => Err(self.error(Fault::Truncated, self.body.len())),
            Some(digits) => four_hex(digits).ok_or_else(|| self.error(Fault::Syntax, at)),
        };
        match self.body.get(at) {
            None => Err(self.error(Fault::Truncated, self.body.len())),
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 1),
            Some(b'u') => match unit(at + 1)? {
                0xdc00..0xe000 => Err(self.error(Fault::Syntax, at + 5)),
                0xd800..0xdc00 => match self.body.get(at + 5..at + 7) {
                    Some(b"\\u") if matches!(unit(at + 7)?, 0xdc00..0xe000) => Ok(at + 11),
                    None => Err(self.error(Fault::Truncated, self.body.len())),
                    Some(_) => Err(self.error(Fault::Syntax, at + 5)),
                },
                _ => Ok(at + 5),
            },
            Some(_) => Err(self.error(Fault::Syntax, at)),
        }
    }

    /// Goes into the array that comes next: its first element, `None` where it is empty.
    ///
    /// # Errors
    /// [`JsonError`].
    #[inline]
    pub fn array(&mut self) -> Read<Option<Next>> {
        self.at += 1;
        if self.token()? == b']' {
            self.at += 1;
            return Ok(None);
        }
        self.peek().map(Some)
    }

    /// The next element of an array; `None` at its end.
    ///
    /// # Errors
    /// [`JsonError`].
    #[inline]
    pub fn element(&mut self) -> Read<Option<Next>> {
        match self.token()? {
            b',' => {
                self.at += 1;
                match self.peek()? {
                    Next::Nothing => Err(self.error(Fault::Syntax, self.at)),
                    next => Ok(Some(next)),
                }
            }
            b']' => {
                self.at += 1;
                Ok(None)
            }
            _ => Err(self.error(Fault::Syntax, self.at)),
        }
    }

    /// Goes into the object that comes next: its first name, `None` where it is empty.
    ///
    /// # Errors
    /// [`JsonError`].
    #[inline(always)]
    pub fn object(&mut self) -> Read<Option<Quoted>> {
        self.at += 1;
        if self.token()? == b'}' {
            self.at += 1;
            return Ok(None);
        }
        self.name().map(Some)
    }

    /// The next name of an object; `None` at its end.
    ///
    /// # Errors
    /// [`JsonError`].
    #[inline(always)]
    pub fn member(&mut self) -> Read<Option<Quoted>> {
        match self.token()? {
            b',' => {
                self.at += 1;
                self.token()?;
                self.name().map(Some)
            }
            b'}' => {
                self.at += 1;
                Ok(None)
            }
            _ => Err(self.error(Fault::Syntax, self.at)),
        }
    }

    /// Demands that nothing but white space is left.
    ///
    /// # Errors
    /// [`JsonError`] of [`Fault::Trailing`].
    pub fn end(&mut self) -> Read<()> {
        match self.token() {
            Ok(_) => Err(self.error(Fault::Trailing, self.at)),
            Err(_) => Ok(()),
        }
    }

    /// Passes over the value that comes next, checking it.
    ///
    /// # Errors
    /// [`JsonError`].
    pub fn skip(&mut self) -> Read<()> {
        self.skip_below(SKIP_DEPTH_MAX)
    }

    fn skip_below(&mut self, depth: usize) -> Read<()> {
        let Some(depth) = depth.checked_sub(1) else { return Err(self.error(Fault::TooDeep, self.at)) };
        match self.peek()? {
            Next::Null | Next::Bool => self.word(),
            Next::Number => self.number().map(|_| ()),
            Next::String => self.string().map(|_| ()),
            Next::Array => {
                let mut next = self.array()?;
                while next.is_some() {
                    self.skip_below(depth)?;
                    next = self.element()?;
                }
                Ok(())
            }
            Next::Object => {
                let mut name = self.object()?;
                while name.is_some() {
                    self.skip_below(depth)?;
                    name = self.member()?;
                }
                Ok(())
            }
            Next::Nothing => Err(self.error(Fault::Syntax, self.at)),
        }
    }

    #[inline(always)]
    fn name(&mut self) -> Read<Quoted> {
        if !self.is(b'"') {
            return Err(self.error(Fault::Syntax, self.at));
        }
        let name = self.string()?;
        if self.token()? != b':' {
            return Err(self.error(Fault::Syntax, self.at));
        }
        self.at += 1;
        Ok(name)
    }

    /// The next byte that is no white space; the position stays on it.
    #[inline(always)]
    fn token(&mut self) -> Read<u8> {
        loop {
            match self.body.get(self.at) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                Some(byte) => return Ok(*byte),
                None => return Err(self.error(Fault::Truncated, self.body.len())),
            }
        }
    }

    fn byte(&self) -> Option<u8> {
        self.body.get(self.at).copied()
    }

    fn is(&self, byte: u8) -> bool {
        self.byte() == Some(byte)
    }

    /// One digit or more.
    fn digits(&mut self) -> Read<()> {
        let from = self.at;
        while self.byte().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        match self.byte() {
            _ if self.at > from => Ok(()),
            None => Err(self.error(Fault::Truncated, self.at)),
            Some(_) => Err(self.error(Fault::Syntax, self.at)),
        }
    }

    #[cold]
    #[expect(clippy::unused_self, reason = "errors are made where the reader stands")]
    const fn error(&self, fault: Fault, at: usize) -> JsonError {
        JsonError { fault, at: place(at) }
    }
}

/// A place in a text, which is shorter than 2 GiB.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "`Json::new` takes no text of 2 GiB")]
const fn place(at: usize) -> u32 {
    at as u32
}

/// Marks, by the highest bit of each byte, the quotes, backslashes and control characters among eight bytes; the lowest mark is exact.
#[inline]
const fn stops(eight: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let quote = eight ^ (ONES * b'"' as u64);
    let backslash = eight ^ (ONES * b'\\' as u64);
    // "A byte is below n": Bit Twiddling Hacks, `hasless`; the two others ask for a byte below 1.
    let control = eight.wrapping_sub(ONES * 0x20) & !eight;
    let quote = quote.wrapping_sub(ONES) & !quote;
    let backslash = backslash.wrapping_sub(ONES) & !backslash;
    (control | quote | backslash) & HIGH
}

fn four_hex(digits: &[u8]) -> Option<u32> {
    digits.get(..4)?.iter().try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)?))
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
