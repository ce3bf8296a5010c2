// The grammar of TOML: statements, keys, values. A mistake is thrown with the line that it is in; whoever reads goes
// on in the next line.

struct TOMLReader {
    private let text: [Unicode.Scalar]
    private var position = 0
    private(set) var line = 1

    init(_ text: String) {
        var all = Array(text.unicodeScalars)
        if all.first == "\u{feff}" { all.removeFirst() }
        self.text = all
    }

    var peek: Unicode.Scalar? { position < text.count ? text[position] : nil }
    private func peek(_ ahead: Int) -> Unicode.Scalar? {
        position + ahead < text.count ? text[position + ahead] : nil
    }

    func mistake(_ message: String, at line: Int? = nil) -> SettingsMistake {
        SettingsMistake(line: line ?? self.line, message: message)
    }

    @discardableResult
    private mutating func next() -> Unicode.Scalar? {
        guard let scalar = peek else { return nil }
        position += 1
        if scalar == "\n" { line += 1 }
        return scalar
    }

    private mutating func take(_ word: String) -> Bool {
        for (index, scalar) in word.unicodeScalars.enumerated() where peek(index) != scalar {
            return false
        }
        for _ in word.unicodeScalars { next() }
        return true
    }

    // MARK: Between statements

    private mutating func skipBlanks() {
        while let scalar = peek, scalar == " " || scalar == "\t" { next() }
    }

    private var isAtNewline: Bool { peek == "\n" || peek == "\r" && peek(1) == "\n" }

    private mutating func skipComment() {
        guard peek == "#" else { return }
        while peek != nil, !isAtNewline { next() }
    }

    private mutating func skipBlanksAndLines() {
        while true {
            skipBlanks()
            skipComment()
            guard isAtNewline else { return }
            if peek == "\r" { next() }
            next()
        }
    }

    /// - Returns: false at the end.
    mutating func skipToStatement() -> Bool {
        skipBlanksAndLines()
        return peek != nil
    }

    mutating func skipLine() {
        while let scalar = peek, scalar != "\n" { next() }
    }

    private mutating func endStatement() throws(SettingsMistake) {
        skipBlanks()
        skipComment()
        guard peek == nil || isAtNewline else {
            throw mistake("nothing may follow here but a comment: \(rest())")
        }
    }

    private func rest() -> String {
        var word = String.UnicodeScalarView()
        for scalar in text[position...].prefix(20) {
            if scalar == "\n" || scalar == "\r" { break }
            word.append(scalar)
        }
        return "'\(String(word))'"
    }

    // MARK: Statements

    mutating func header() throws(SettingsMistake) -> (key: [String], isArray: Bool) {
        let isArray = take("[[")
        if !isArray { next() }
        let key = try key()
        skipBlanks()
        guard take(isArray ? "]]" : "]") else {
            throw mistake("a table's name ends with \(isArray ? "]]" : "]")")
        }
        try endStatement()
        return (key, isArray)
    }

    mutating func keyAndValue() throws(SettingsMistake) -> TOMLEntry {
        let entry = try pair()
        try endStatement()
        return entry
    }

    private mutating func pair() throws(SettingsMistake) -> TOMLEntry {
        let key = try key()
        skipBlanks()
        guard take("=") else {
            throw mistake("'=' is missing after \(TOMLDocument.text(key))")
        }
        skipBlanks()
        return TOMLEntry(key: key, item: try item())
    }

    private mutating func key() throws(SettingsMistake) -> [String] {
        var parts: [String] = []
        repeat {
            skipBlanks()
            parts.append(try simpleKey())
            skipBlanks()
        } while take(".")
        return parts
    }

    private mutating func simpleKey() throws(SettingsMistake) -> String {
        if peek == "\"" || peek == "'" { return try string(allowsLines: false) }
        var word = String.UnicodeScalarView()
        while let scalar = peek, Self.isBare(scalar) {
            word.append(scalar)
            next()
        }
        guard !word.isEmpty else { throw mistake("here a name is expected: \(rest())") }
        return String(word)
    }

    private static func isBare(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar {
        case "A"..."Z", "a"..."z", "0"..."9", "-", "_": true
        default: false
        }
    }

    // MARK: Values

    private mutating func item() throws(SettingsMistake) -> TOMLItem {
        let line = line
        switch peek {
        case "\"", "'": return TOMLItem(value: .string(try string(allowsLines: true)), line: line)
        case "[": return TOMLItem(value: .array(try array()), line: line)
        case "{": return TOMLItem(value: .table(try inlineTable()), line: line)
        default: return TOMLItem(value: try scalar(), line: line)
        }
    }

    private mutating func array() throws(SettingsMistake) -> [TOMLItem] {
        let begun = line
        next()
        var items: [TOMLItem] = []
        while true {
            skipBlanksAndLines()
            if take("]") { return items }
            guard peek != nil else { throw mistake("this list has no end", at: begun) }
            items.append(try item())
            skipBlanksAndLines()
            if take(",") { continue }
            guard take("]") else {
                throw mistake("in a list ',' or ']' is expected: \(rest())")
            }
            return items
        }
    }

    private mutating func inlineTable() throws(SettingsMistake) -> [TOMLEntry] {
        next()
        var entries: [TOMLEntry] = []
        skipBlanks()
        if take("}") { return entries }
        while true {
            entries.append(try pair())
            skipBlanks()
            if take("}") { return entries }
            guard take(",") else {
                throw mistake("in a table ',' or '}' is expected: \(rest())")
            }
            skipBlanks()
        }
    }

    private mutating func scalar() throws(SettingsMistake) -> TOMLItem.Value {
        var view = String.UnicodeScalarView()
        while let scalar = peek, !" \t\r\n#,]}".unicodeScalars.contains(scalar) {
            view.append(scalar)
            next()
        }
        let word = String(view)
        // A time may stand apart from its date.
        if word.wholeMatch(of: /\d{4}-\d\d-\d\d/) != nil, peek == " ",
            peek(1).map(Self.isDigit) == true
        {
            next()
            return .dateTime(word + " " + (try Self.word(of: scalar())))
        }
        switch word {
        case "": throw mistake("a value is missing")
        case "true": return .boolean(true)
        case "false": return .boolean(false)
        default: break
        }
        if let number = Self.integer(word) { return .integer(number) }
        if word.wholeMatch(
            of: /[+-]?(inf|nan|(0|[1-9](_?[0-9])*)(\.[0-9](_?[0-9])*)?([eE][+-]?[0-9](_?[0-9])*)?)/)
            != nil
        {
            // A number beyond 64 bits is one that nothing can have, too.
            return .float(word)
        }
        if word.wholeMatch(of: /\d{4}-\d\d-\d\d([Tt]\S+)?|\d\d:\d\d(:\d\d(\.\d+)?)?/) != nil {
            return .dateTime(word)
        }
        throw mistake("'\(word)' is no value: text stands in quotes, as in \"\(word)\"")
    }

    private static func isDigit(_ scalar: Unicode.Scalar) -> Bool { ("0"..."9").contains(scalar) }

    private static func word(of value: TOMLItem.Value) -> String {
        if case .dateTime(let text) = value { return text }
        return "\(value)"
    }

    private static func integer(_ word: String) -> Int64? {
        let radices = [("0x", 16), ("0o", 8), ("0b", 2)]
        let radix = radices.first { word.hasPrefix($0.0) }
        let digits = radix == nil ? word : String(word.dropFirst(2))
        // Single underscores between digits, no leading zeros.
        guard digits.wholeMatch(of: /[+-]?[0-9A-Fa-f]+(_[0-9A-Fa-f]+)*/) != nil,
            radix != nil || digits.wholeMatch(of: /[+-]?0[0-9_]+/) == nil,
            radix == nil || digits.first?.isHexDigit == true
        else { return nil }
        return Int64(digits.filter { $0 != "_" }, radix: radix?.1 ?? 10)
    }
}

// MARK: Strings

extension TOMLReader {
    private mutating func string(allowsLines: Bool) throws(SettingsMistake) -> String {
        let begun = line
        let quote: Unicode.Scalar = peek == "\"" ? "\"" : "'"
        let triple = String(repeating: String(quote), count: 3)
        let isLong = take(triple)
        if isLong {
            guard allowsLines else { throw mistake("a name stands in one line") }
            if take("\r\n") || take("\n") {}
        } else {
            next()
        }
        var result = String.UnicodeScalarView()
        while true {
            guard let scalar = peek, isLong || !isAtNewline else {
                throw mistake(
                    "this text has no end: \(isLong ? triple : String(quote)) is missing", at: begun
                )
            }
            if isLong, take(triple) {
                // Up to two more belong to the text.
                for _ in 0..<2 where peek == quote {
                    result.append(quote)
                    next()
                }
                return String(result)
            }
            next()
            switch scalar {
            case quote where !isLong: return String(result)
            case "\\" where quote == "\"":
                if let escaped = try escape(isLong: isLong) { result.append(escaped) }
            case "\r" where peek == "\n": break
            case "\n", "\t": result.append(scalar)
            default:
                guard scalar.value >= 0x20, scalar.value != 0x7f else {
                    throw mistake("a text has no control characters")
                }
                result.append(scalar)
            }
        }
    }

    /// - Returns: nil where a line is only broken for the reader.
    private mutating func escape(isLong: Bool) throws(SettingsMistake) -> Unicode.Scalar? {
        let scalar = peek
        if isLong, scalar == " " || scalar == "\t" || isAtNewline {
            skipBlanks()
            guard isAtNewline else { throw mistake("a single \\ is written \\\\") }
            while peek == " " || peek == "\t" || isAtNewline { next() }
            return nil
        }
        next()
        switch scalar {
        case "b": return "\u{8}"
        case "t": return "\t"
        case "n": return "\n"
        case "f": return "\u{c}"
        case "r": return "\r"
        case "\"": return "\""
        case "\\": return "\\"
        case "u": return try codePoint(digits: 4)
        case "U": return try codePoint(digits: 8)
        default:
            throw mistake(
                "\\\(scalar.map(String.init) ?? "") means nothing: a single \\ is written \\\\")
        }
    }

    private mutating func codePoint(digits: Int) throws(SettingsMistake) -> Unicode.Scalar {
        var word = String.UnicodeScalarView()
        for _ in 0..<digits { if let scalar = next() { word.append(scalar) } }
        guard let number = UInt32(String(word), radix: 16), let scalar = Unicode.Scalar(number)
        else { throw mistake("\\\(digits == 4 ? "u" : "U")\(String(word)) is no character") }
        return scalar
    }
}
