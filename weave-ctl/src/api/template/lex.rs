//! Cuts a template into text and actions, and actions into tokens.

use super::ParseError;

/// A part of a template with the line on which it begins (from 1).
pub enum Part {
    /// Copied to the output, trimmed already.
    Text(String),
    /// The inside of `{{ }}`.
    Action(usize, Vec<Token>),
}

/// A token of an action.
#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    /// `.A.B` (no names: `.` alone). Glued to what stands before when `glued`.
    Fields { names: Vec<String>, glued: bool },
    /// `$x`; empty for `$`.
    Variable(String),
    /// A function, keyword, or `true`, `false`, `nil`.
    Word(String),
    /// Quoted or raw text.
    Text(String),
    /// Integer or character.
    Int(i128),
    /// Number with a point or exponent.
    Float(f64),
    /// `(`, `)`, `|`, `,`, `=`, `:=`.
    Sign(&'static str),
}

const TRIMMED: [char; 4] = [' ', '\t', '\r', '\n'];

/// Cuts a template up; comments disappear.
pub fn parts(template: &str) -> Result<Vec<Part>, ParseError> {
    let mut parts = Vec::new();
    let mut rest = template;
    let mut trim_next = false;
    let mut line = 1;
    loop {
        let (text, after) = match rest.split_once("{{") {
            Some((text, after)) => (text, Some(after)),
            None => (rest, None),
        };
        let trim_this = after.is_some_and(|a| a.starts_with('-') && a[1..].starts_with(TRIMMED));
        let text = if trim_next {
            text.trim_start_matches(TRIMMED)
        } else {
            text
        };
        let text = if trim_this {
            text.trim_end_matches(TRIMMED)
        } else {
            text
        };
        if !text.is_empty() {
            parts.push(Part::Text(text.to_owned()));
        }
        let Some(after) = after else { return Ok(parts) };
        line += rest.strip_suffix(after).unwrap_or_default().matches('\n').count();
        let mut lexer = Lexer {
            rest: after.strip_prefix('-').filter(|_| trim_this).unwrap_or(after),
            line,
        };
        let comment = lexer.comment()?;
        let tokens = lexer.tokens()?;
        if !comment {
            parts.push(Part::Action(line, tokens));
        } else if !tokens.is_empty() {
            return Err(lexer.error("comment ends before closing delimiter"));
        }
        let trimmed = lexer.rest.strip_prefix('-');
        trim_next = trimmed.is_some();
        line += after
            .strip_suffix(lexer.rest)
            .unwrap_or_default()
            .matches('\n')
            .count();
        rest = trimmed
            .unwrap_or(lexer.rest)
            .strip_prefix("}}")
            .unwrap_or_default();
    }
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Lexer<'a> {
    fn error(&self, text: impl Into<String>) -> ParseError {
        ParseError {
            line: self.line,
            text: text.into(),
        }
    }

    /// Is the action a comment? If so, moves behind it.
    fn comment(&mut self) -> Result<bool, ParseError> {
        let Some(inside) = self.rest.trim_start_matches(TRIMMED).strip_prefix("/*") else {
            return Ok(false);
        };
        let (_, after) = inside
            .split_once("*/")
            .ok_or_else(|| self.error("unclosed comment"))?;
        self.rest = after;
        Ok(true)
    }

    /// Tokens up to the closing delimiter, which stays.
    fn tokens(&mut self) -> Result<Vec<Token>, ParseError> {
        let mut tokens = Vec::new();
        loop {
            let inside = self.rest.trim_start_matches(TRIMMED);
            let spaced = inside.len() < self.rest.len();
            self.rest = inside;
            if inside.starts_with("}}") || (spaced && inside.starts_with("-}}")) {
                return Ok(tokens);
            }
            let glued = !spaced && !tokens.is_empty();
            let token = self.token(glued)?;
            tokens.push(token);
        }
    }

    fn token(&mut self, glued: bool) -> Result<Token, ParseError> {
        for sign in ["(", ")", "|", ",", ":=", "="] {
            if let Some(rest) = self.rest.strip_prefix(sign) {
                self.rest = rest;
                return Ok(Token::Sign(sign));
            }
        }
        let mut chars = self.rest.chars();
        let second = self.rest.chars().nth(1);
        match chars.next() {
            None => Err(self.error("unclosed action")),
            Some('.') if !second.is_some_and(|c| c.is_ascii_digit()) => {
                let mut names = Vec::new();
                while let Some(after) = self.rest.strip_prefix('.') {
                    self.rest = after;
                    let name = self.name();
                    if name.is_empty() && (!names.is_empty() || self.rest.starts_with('.')) {
                        return Err(self.error("unexpected . after term"));
                    }
                    if !name.is_empty() {
                        names.push(name.to_owned());
                    }
                }
                Ok(Token::Fields { names, glued })
            }
            Some('$') => {
                self.rest = chars.as_str();
                Ok(Token::Variable(self.name().to_owned()))
            }
            Some('"') => self.quoted().map(Token::Text),
            Some('`') => {
                let (raw, rest) = chars
                    .as_str()
                    .split_once('`')
                    .ok_or_else(|| self.error("unterminated raw quoted string"))?;
                self.rest = rest;
                Ok(Token::Text(raw.to_owned()))
            }
            Some('\'') => self.character(),
            Some(c) if c.is_alphabetic() || c == '_' => Ok(Token::Word(self.name().to_owned())),
            Some(c) if c.is_ascii_digit() || "+-.".contains(c) => self.number(),
            Some(c) => Err(self.error(format!("unexpected {c:?} in command"))),
        }
    }

    fn name(&mut self) -> &'a str {
        let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_');
        let (name, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        name
    }

    fn number(&mut self) -> Result<Token, ParseError> {
        let part_of = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
        let end = self.rest.find(|c| !part_of(c)).unwrap_or(self.rest.len());
        let (text, rest) = self.rest.split_at(end);
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, text.strip_prefix('+').unwrap_or(text)),
        };
        let int = match digits.strip_prefix("0x") {
            Some(hex) => i64::from_str_radix(hex, 16).ok(),
            None => digits.parse::<u64>().ok().and_then(|n| i64::try_from(n).ok()),
        };
        let token = match (int, text.parse::<f64>()) {
            (Some(n), _) => Token::Int(sign * i128::from(n)),
            (None, Ok(n)) if n.is_finite() && digits.contains(['.', 'e', 'E']) => Token::Float(n),
            _ => return Err(self.error(format!("bad number syntax: {text:?}"))),
        };
        self.rest = rest;
        Ok(token)
    }

    /// A Go interpreted string; the quotation mark is next.
    fn quoted(&mut self) -> Result<String, ParseError> {
        let unterminated = self.error("unterminated quoted string");
        let mut out = String::new();
        self.rest = &self.rest[1..];
        loop {
            match self.rest.chars().next() {
                None | Some('\n') => return Err(unterminated),
                Some('"') => {
                    self.rest = &self.rest[1..];
                    return Ok(out);
                }
                Some(_) => out.push(self.escaped()?),
            }
        }
    }

    fn character(&mut self) -> Result<Token, ParseError> {
        self.rest = &self.rest[1..];
        let c = self.escaped()?;
        self.rest = self
            .rest
            .strip_prefix('\'')
            .ok_or_else(|| self.error("unterminated character constant"))?;
        Ok(Token::Int(u32::from(c).into()))
    }

    /// One character, or an escape sequence.
    fn escaped(&mut self) -> Result<char, ParseError> {
        let mut chars = self.rest.chars();
        let Some(c) = chars.next() else {
            return Err(self.error("unterminated quoted string"));
        };
        self.rest = chars.as_str();
        if c != '\\' {
            return Ok(c);
        }
        let escape = chars.next();
        self.rest = chars.as_str();
        let digits = match escape {
            Some('n') => return Ok('\n'),
            Some('t') => return Ok('\t'),
            Some('r') => return Ok('\r'),
            Some(c @ ('\\' | '"' | '\'')) => return Ok(c),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            _ => return Err(self.error("unknown escape sequence in string")),
        };
        let code = self
            .rest
            .get(..digits)
            .and_then(|d| u32::from_str_radix(d, 16).ok());
        let c = code
            .and_then(char::from_u32)
            .ok_or_else(|| self.error("bad escape sequence in string"))?;
        self.rest = &self.rest[digits..];
        Ok(c)
    }
}
