# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""The hot half of the protocol, compiled: the same names and the same behaviour as `_pure`, which says what each is for.

Received bytes are parsed in place, by pointers that are checked against the end of what has arrived. The buffer exists only while an
exchange is in flight, so an idle connection costs nothing. A value that does not fit into the buffer is received straight into the
``bytes`` object that the caller gets.

Memory is lent as memoryviews, and each of them holds a reference to the ``bytes`` object it writes to. So a view that outlives its
exchange is harmless: a buffer is freed when its last view is, and a large value that is still lent gets copied before it is given out.

Nothing here relies on the GIL: a `Reader` belongs to one connection, which has one user at a time, and the functions touch no state
but their arguments, which must be lists and tuples that no other thread changes meanwhile.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.bytes cimport _PyBytes_Resize
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES
from cpython.dict cimport PyDict_SetItem
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from cpython.long cimport PyLong_FromLongLong
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_REFCNT
from cpython.unicode cimport PyUnicode_DecodeLatin1, PyUnicode_DecodeUTF8
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcmp, memcpy, memmove

from kvcluster.placement.murmur3 cimport murmur3
from kvcluster.protocol._pure import Malformed
from kvcluster.protocol._pure import Reply as PureReply

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    object PySequence_Fast(object sequence, const char *message)
    Py_ssize_t PySequence_Fast_GET_SIZE(object sequence)
    PyObject *PySequence_Fast_GET_ITEM(object sequence, Py_ssize_t index)

cdef extern from *:
    dict presized "__Pyx_PyDict_NewPresized" (Py_ssize_t size)  # Cython's own name for what CPython offers, if it does

cdef extern from "sys/socket.h" nogil:
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t send(int fd, const void *data, size_t size, int flags)
    int MSG_NOSIGNAL  # CPython ignores SIGPIPE, a program that embeds it may not

cdef enum:
    BUFFER_SIZE = 65536
    MAX_LINE = 2048
    MAX_DATA = 1 << 30
    MAX_KEY = 250
    RESERVED_AT_ONCE = 1 << 21  # a larger value gets memory as it arrives, since its length may be garbage


cdef char *BYTES = b"B"  # the format of a view


cdef inline bint legal(unsigned char byte) noexcept nogil:
    """Whether memcached allows the byte in a key; flags of a reply are made of the same ones."""
    return byte > 0x20 and byte != 0x7F


cdef inline bint all_legal(const char *at, Py_ssize_t size) noexcept nogil:
    cdef const char *stop = at + size
    cdef uint64_t eight, seven
    while at < stop:
        # A byte from which the subtraction borrows, and whose own top bit is clear, was below 0x21; one that was 0x7f is 0 in `seven`.
        if stop - at >= 8:
            memcpy(&eight, at, 8)
        else:
            eight = 0x2121212121212121ULL
            memcpy(&eight, at, stop - at)
        seven = eight ^ 0x7F7F7F7F7F7F7F7FULL
        if ((eight - 0x2121212121212121ULL) & ~eight | (seven - 0x0101010101010101ULL) & ~seven) & 0x8080808080808080ULL:
            return False
        at += 8
    return True


cdef inline bint is_digit(char byte) noexcept nogil:
    return c'0' <= byte <= c'9'


cdef inline const char *digits(const char *at, const char *stop, int most, unsigned long long *number) noexcept nogil:
    """Read up to ``most`` digits: where they end, or NULL where there are none or more. The number is exact up to 19 digits."""
    cdef const char *first = at
    number[0] = 0
    while at < stop and is_digit(at[0]):
        if at - first == most:
            return NULL
        number[0] = number[0] * 10 + <unsigned char>(at[0] - c'0')
        at += 1
    return at if at > first else NULL


cdef object integer(const char *at, Py_ssize_t size):
    """What ``int()`` makes of these bytes."""
    cdef const char *stop = at + size
    cdef const char *first = at + 1 if size and at[0] == c'-' else at
    cdef unsigned long long number
    if digits(first, stop, 18, &number) == stop:
        return PyLong_FromLongLong(-<long long>number if first > at else <long long>number)
    return int(PyBytes_FromStringAndSize(at, size))


cdef const char *end_of_line(const char *at, const char *stop) except? NULL:
    """Where the line ends (at its CR), or NULL while it is not whole."""
    cdef const char *limit = at + MAX_LINE + 2 if stop - at > MAX_LINE + 2 else stop
    cdef const char *cr = at
    while cr < limit:
        cr = <const char *>memchr(cr, c'\r', limit - cr)
        if cr == NULL or cr + 1 >= limit:
            break
        if cr[1] == c'\n':
            return cr
        cr += 1
    if stop - at >= MAX_LINE + 2:
        raise Malformed(f"a line of more than {MAX_LINE} bytes: {at[:40]!r}…")
    return NULL


cdef inline bint starts_with(const char *at, const char *stop, const char *word, Py_ssize_t size) noexcept nogil:
    return stop - at >= size and memcmp(at, word, size) == 0


cdef inline bint is_error(const char *at, const char *stop) noexcept nogil:
    return starts_with(at, stop, b"SERVER_ERROR", 12) or starts_with(at, stop, b"CLIENT_ERROR", 12)


cdef object shown(const char *at, const char *stop):
    return f"{at[:stop - at]!r:.100}"


@cython.no_gc  # it holds numbers and texts, which make no cycles, and there are thousands at a time
cdef class Reply:
    """The reply to one meta command; see `kvcluster.protocol._pure.Reply`."""

    cdef public object status, value, flags, cas, ttl, size, opaque
    cdef public bint won, taken, stale

    def __cinit__(self, status):
        self.status = status
        self.flags = 0
        self.cas = 0
        self.ttl = -1
        self.size = 0
        self.opaque = b""

    def __repr__(self):
        return PureReply.__repr__(self)


cdef tuple STATUSES = ("HD", "EN", "NF", "NS", "EX", "MN")


cdef object status_of(const char *at):
    """The two letters as a status, or None."""
    cdef const char *known = b"HDENNFNSEXMN"
    cdef int i
    for i in range(6):
        if at[0] == known[2 * i] and at[1] == known[2 * i + 1]:
            return STATUSES[i]
    return None


cdef bint are_flags(const char *at, const char *stop) noexcept nogil:
    """Whether the rest of a line is flags: each a space and at least one legal byte, with at most one space after the last."""
    while at < stop:
        if at[0] != c' ':
            return False
        at += 1
        if at == stop:
            return True
        if not legal(<unsigned char>at[0]):
            return False
        while at < stop and legal(<unsigned char>at[0]):
            at += 1
    return True


cdef int read_flags(Reply reply, const char *at, const char *stop) except -1:
    """Note the flags of a rest of a line for which `are_flags` is true."""
    cdef const char *first
    cdef const char *sign
    cdef unsigned long long number
    cdef char letter
    while at < stop:
        at += 1
        first = at
        while at < stop and at[0] != c' ':
            at += 1
        if first == at:
            break
        letter = first[0]
        if letter == c'f' or letter == c'c' or letter == c't' or letter == c's':
            sign = first + 1
            if sign < at and sign[0] == c'-':
                sign += 1
            if digits(sign, at, 20, &number) != at:
                raise Malformed(f"not a number: {shown(first, at)}")
            value = integer(first + 1, at - first - 1)
            if letter == c'f':
                reply.flags = value
            elif letter == c'c':
                reply.cas = value
            elif letter == c't':
                reply.ttl = value
            else:
                reply.size = value
        elif letter == c'O':
            reply.opaque = first[1:at - first]
        elif at - first == 1:
            if letter == c'W':
                reply.won = True
            elif letter == c'Z':
                reply.taken = True
            elif letter == c'X':
                reply.stale = True
    return 0


cdef inline char *put(char *at, bytes piece) noexcept:
    memcpy(at, PyBytes_AS_STRING(piece), PyBytes_GET_SIZE(piece))
    return at + PyBytes_GET_SIZE(piece)


cdef bytes GET = b"get ", GETS = b"gets "


cdef inline bytes word_of(bint tokens):
    return GETS if tokens else GET


cdef bytes line_of(bytes word, object wires):
    """The word and the keys, a list or tuple of bytes, as a line."""
    cdef Py_ssize_t keys = PySequence_Fast_GET_SIZE(wires), room = PyBytes_GET_SIZE(word) + 2 + max(0, keys - 1), i
    cdef bytes line
    cdef char *at
    for i in range(keys):
        room += PyBytes_GET_SIZE(<bytes?><object>PySequence_Fast_GET_ITEM(wires, i))
    line = PyBytes_FromStringAndSize(NULL, room)
    at = put(PyBytes_AS_STRING(line), word)
    for i in range(keys):
        if i:
            at[0] = c' '
            at += 1
        at = put(at, <bytes><object>PySequence_Fast_GET_ITEM(wires, i))
    memcpy(at, b"\r\n", 2)
    return line


cdef class Fetch:
    """A classic read of plain keys at one node, and what it brought; see `kvcluster.protocol._pure.Fetch`."""

    count = 1
    owed = 0
    deletes = ()
    opened_before = None
    repeatable = True
    misplaced = False

    def __init__(self, wires not None, names not None, decode, dict values not None, bint tokens=False):
        self.names = PySequence_Fast(names, b"names must be a sequence")
        self.payload = line_of(word_of(tokens), PySequence_Fast(wires, b"wires must be a sequence"))
        if len(wires) != PySequence_Fast_GET_SIZE(self.names):
            raise ValueError("wires and names must be equally many")
        self.decode, self.values, self.tokens = decode, values, tokens

    @property
    def wires(self):
        return self.payload[PyBytes_GET_SIZE(word_of(self.tokens)):PyBytes_GET_SIZE(self.payload) - 2].split(b" ")

    def reset(self):
        """Forget what came, to be sent again."""
        for name in self.names:
            self.values.pop(name, None)
        self.found = self.undecodable = 0
        self.doubtful = self.refusal = self.failure = None

    cpdef settle(self, counters):
        """Count what came; doubtful keys are counted when they are asked again."""
        cdef Py_ssize_t missed = PySequence_Fast_GET_SIZE(self.names) - self.found
        if self.doubtful is not None:
            missed -= len(self.doubtful)
        if self.found:
            counters.hits += self.found
        if missed:
            counters.misses += missed
        if self.undecodable:
            counters.undecodable += self.undecodable
        if self.refusal is not None:
            counters.errors += 1

    def fail(self, counters):
        """Count what did not come, because the exchange failed. What came before it did is not trusted either."""
        self.reset()
        counters.misses += PySequence_Fast_GET_SIZE(self.names)


cdef int send_bytes(int fd, bytes payload) except -1:
    cdef const char *at = PyBytes_AS_STRING(payload)
    cdef Py_ssize_t left = PyBytes_GET_SIZE(payload), count
    while left:
        with nogil:
            count = send(fd, at, left, MSG_NOSIGNAL)
        if count >= 0:
            at += count
            left -= count
        elif errno == EINTR:
            PyErr_CheckSignals()
        else:
            PyErr_SetFromErrno(OSError)
    return 0


def send_all(int fd, bytes payload not None):
    """Send a payload whole; see `_pure.send_all`."""
    send_bytes(fd, payload)


cdef class Reader:
    """Reads the replies that one connection receives; see `kvcluster.protocol._pure.Reader`."""

    def __cinit__(self):
        self.memory = b""

    @property
    def excess(self):
        """Whether more arrived than the request asked for."""
        return self.end > self.start

    cpdef begin(self, request):
        """Read the replies to this request from here on."""
        self.fetch = self.replies = self.large = None
        if isinstance(request, Fetch):
            self.fetch = request
            self.cursor = 0
            self.cursor_at = PyBytes_AS_STRING(self.fetch.payload) + PyBytes_GET_SIZE(word_of(self.fetch.tokens))
        else:
            self.count = request.count
            self.replies = request.replies

    def buffer(self):
        """Where to receive into; the view is good for one call of `received`."""
        self.make_room()
        return PyMemoryView_FromObject(self)

    cpdef Py_ssize_t receive(self, int fd) except -1:
        """Receive once; see `_pure.Reader.receive`."""
        cdef bytes memory
        cdef char *at
        cdef Py_ssize_t count
        self.make_room()
        memory = self.memory if self.large is None else self.large  # stays while other threads run
        at = PyBytes_AS_STRING(memory) + (self.end if self.large is None else self.large_end)
        self.lent = PyBytes_AS_STRING(memory) + PyBytes_GET_SIZE(memory) - at
        while True:
            with nogil:
                count = recv(fd, at, self.lent, 0)
            if count >= 0:
                break
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)
            PyErr_CheckSignals()
        memory = None
        self.complete = count > 0 and self.received(count)
        return count

    cdef int make_room(self) except -1:
        cdef bytes larger
        cdef char *first
        if self.large is not None:
            if self.large_end == PyBytes_GET_SIZE(self.large):
                self.resize_large(min(self.large_size, 2 * self.large_end))
            return 0
        first = PyBytes_AS_STRING(self.memory)
        if self.start:
            memmove(first, first + self.start, self.end - self.start)
            self.end -= self.start
            self.start = 0
        if self.end == PyBytes_GET_SIZE(self.memory):
            larger = PyBytes_FromStringAndSize(NULL, max(BUFFER_SIZE, 2 * self.end))
            memcpy(PyBytes_AS_STRING(larger), first, self.end)
            self.memory = larger
        return 0

    def __getbuffer__(self, Py_buffer *view, int flags):
        # A view of the free part. Its owner is the bytes object itself, not this reader: see the head of the module.
        cdef bytes memory = self.memory if self.large is None else self.large
        cdef Py_ssize_t used = self.end if self.large is None else self.large_end
        self.lent = PyBytes_GET_SIZE(memory) - used
        view.obj = memory
        view.buf = PyBytes_AS_STRING(memory) + used
        view.len = self.lent
        view.itemsize = 1
        view.readonly = 0
        view.ndim = 1
        view.format = BYTES if flags & PyBUF_FORMAT else NULL
        view.shape = &view.len if flags & PyBUF_ND else NULL
        view.strides = &view.itemsize if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        view.suboffsets = NULL
        view.internal = NULL

    cpdef bint received(self, Py_ssize_t count) except -1:
        """Take in ``count`` bytes from the buffer, and say whether the request has all its replies.

        :raises Malformed: for bytes that are not a reply to the request
        """
        if self.fetch is None and self.replies is None:
            raise ValueError("received() without begin()")
        if not 0 <= count <= self.lent:
            raise ValueError(f"received {count} bytes into a buffer of {self.lent}")
        self.lent = 0
        if self.large is None:
            self.end += count
        else:
            self.large_end += count
            if self.large_end < self.large_size:
                return False
        if not (self.read_commands() if self.fetch is None else self.read_fetch()):
            return False
        self.fetch = self.replies = None
        if self.start == self.end:
            self.memory = b""
            self.start = self.end = 0
        return True

    cdef int resize_large(self, Py_ssize_t size) except -1:
        """Give the large value ``size`` bytes of memory; in place, unless somebody still has a view of it."""
        cdef PyObject *memory = <PyObject *>self.large
        cdef bytes copy
        if Py_REFCNT(self.large) > 1:
            copy = PyBytes_FromStringAndSize(NULL, size)
            memcpy(PyBytes_AS_STRING(copy), PyBytes_AS_STRING(self.large), min(size, self.large_end))
            self.large = copy
            return 0
        Py_INCREF(<object>memory)
        self.large = None  # so that `memory` is the only reference
        _PyBytes_Resize(&memory, size)
        self.large = <bytes>memory
        Py_DECREF(<object>memory)
        return 0

    cdef int begin_large(self, Py_ssize_t data_at, Py_ssize_t size) except -1:
        """Receive the ``size`` bytes from ``data_at``, and their line end, into memory of their own."""
        cdef Py_ssize_t there = self.end - data_at
        self.large_size = size + 2
        self.large = PyBytes_FromStringAndSize(NULL, min(self.large_size, max(RESERVED_AT_ONCE, there)))
        memcpy(PyBytes_AS_STRING(self.large), PyBytes_AS_STRING(self.memory) + data_at, there)
        self.large_end = there
        self.end = data_at
        return 0

    cdef const char *find_data(self, const char *line, const char *at, const char *stop, unsigned long long size) except? NULL:
        """The data of ``size`` bytes that belongs to a line and starts at ``at``, or NULL while it is not whole."""
        cdef const char *data = at
        cdef Py_ssize_t needed = <Py_ssize_t>size + 2
        if size > MAX_DATA:
            raise Malformed(f"a value of {size} bytes")
        if self.large is not None and self.large_size == needed:
            data = PyBytes_AS_STRING(self.large)
        elif stop - at < needed:
            if at - line + needed > PyBytes_GET_SIZE(self.memory):
                self.begin_large(at - PyBytes_AS_STRING(self.memory), <Py_ssize_t>size)
            return NULL
        if data[size] != c'\r' or data[size + 1] != c'\n':
            raise Malformed(f"a value of {size} bytes does not end where it should")
        return data

    cdef bytes take_data(self, const char *data, Py_ssize_t size):
        """What `find_data` found, as an object."""
        cdef bytes taken
        if self.large is None:
            return PyBytes_FromStringAndSize(data, size)
        self.resize_large(size)
        taken = self.large
        self.large = None
        return taken

    cdef bint read_fetch(self) except -1:
        cdef Fetch fetch = self.fetch
        cdef bytes memory = self.memory  # stays, whatever a codec does meanwhile
        cdef const char *first = PyBytes_AS_STRING(memory)
        cdef const char *line = first + self.start
        cdef const char *stop = first + self.end
        cdef const char *end
        cdef const char *at
        cdef const char *data
        cdef const char *cas
        cdef Py_ssize_t key_size
        cdef unsigned long long flags, size, number
        cdef bint done = False, was_large
        while not done:
            end = end_of_line(line, stop)
            if end == NULL:
                break
            if starts_with(line, end, b"VALUE ", 6):
                at = self.find_key(line + 6, end)
                if at == NULL:
                    raise Malformed(f"not a value that was asked for: {shown(line, end)}")
                key_size = at - line - 6
                at = digits(at + 1, end, 10, &flags)
                if at == NULL or at == end or at[0] != c' ':
                    raise Malformed(f"not a value: {shown(line, end)}")
                at = digits(at + 1, end, 10, &size)
                if at == NULL:
                    raise Malformed(f"not a value: {shown(line, end)}")
                cas = NULL
                if at != end:
                    cas = at + 1
                    if at[0] != c' ' or digits(cas, end, 20, &number) != end:
                        raise Malformed(f"not a value: {shown(line, end)}")
                if (cas != NULL) != fetch.tokens:
                    raise Malformed(f"a value {'without' if fetch.tokens else 'with'} a CAS number: {shown(line, end)}")
                was_large = self.large is not None
                data = self.find_data(line, end + 2, stop, size)
                if data == NULL:
                    break
                self.file(key_size, data, <Py_ssize_t>size, flags, cas, end)
                line = end + 2 if was_large else data + size + 2
                self.large = None
            elif end - line == 3 and memcmp(line, b"END", 3) == 0:
                line = end + 2
                done = True
            elif is_error(line, end):
                fetch.refusal = line[:end - line]
                line = end + 2
                done = True
            else:
                raise Malformed(f"not a value: {shown(line, end)}")
        self.start = line - first
        return done

    cdef const char *find_key(self, const char *key, const char *stop) noexcept:
        """Put the cursor to a key asked for: the space after it in the reply; NULL where it is none, or not asked for any more."""
        cdef const char *space = <const char *>memchr(key, c' ', stop - key)
        cdef const char *at = self.cursor_at
        cdef const char *last = PyBytes_AS_STRING(self.fetch.payload) + PyBytes_GET_SIZE(self.fetch.payload) - 2
        cdef Py_ssize_t size = space - key
        cdef Py_ssize_t position
        if space == NULL:
            return NULL
        for position in range(self.cursor, PySequence_Fast_GET_SIZE(self.fetch.names)):
            if last - at >= size and (at + size == last or at[size] == c' ') and memcmp(at, key, size) == 0:
                self.cursor = position
                self.cursor_at = at
                return space
            at = <const char *>memchr(at, c' ', last - at)
            if at == NULL:
                break
            at += 1
        return NULL

    cdef int file(
        self, Py_ssize_t key_size, const char *data, Py_ssize_t size, unsigned long long flags, const char *cas, const char *cas_end
    ) except -1:
        """Put a value where the name of the key at the cursor says."""
        cdef Fetch fetch = self.fetch
        cdef Py_ssize_t at = self.cursor
        cdef const char *key = self.cursor_at
        cdef object value
        self.cursor += 1
        self.cursor_at += key_size + 1
        if flags == 0:
            if size == 0:
                if fetch.doubtful is None:
                    fetch.doubtful = [at]
                else:
                    fetch.doubtful.append(at)
                return 0
            value = self.take_data(data, size)
        else:
            try:
                if flags == 16:
                    value = PyUnicode_DecodeUTF8(data, size, NULL)
                elif flags == 2:
                    value = integer(data, size)
                else:
                    value = fetch.decode(self.take_data(data, size), flags)
            except Exception as error:  # whatever a codec raises, the value is of no use: a miss that is counted
                fetch.undecodable += 1
                fetch.failure = (key[:key_size], error)
                return 0
        if cas != NULL:
            value = (value, cas[:cas_end - cas])
        PyDict_SetItem(fetch.values, <object>PySequence_Fast_GET_ITEM(fetch.names, at), value)
        fetch.found += 1
        return 0

    cdef bint read_commands(self) except -1:
        cdef const char *first = PyBytes_AS_STRING(self.memory)
        cdef const char *line = first + self.start
        cdef const char *stop = first + self.end
        cdef const char *end
        cdef const char *at
        cdef const char *data
        cdef unsigned long long size
        cdef Reply reply
        cdef bint was_large
        cdef object status
        while len(self.replies) < self.count:
            end = end_of_line(line, stop)
            if end == NULL:
                break
            status = status_of(line) if end - line >= 2 else None
            if status is not None and are_flags(line + 2, end):
                reply = Reply(status)
                read_flags(reply, line + 2, end)
                line = end + 2
            elif starts_with(line, end, b"VA ", 3):
                at = digits(line + 3, end, 10, &size)
                if at == NULL or not are_flags(at, end):
                    raise Malformed(f"not a reply: {shown(line, end)}")
                was_large = self.large is not None
                data = self.find_data(line, end + 2, stop, size)
                if data == NULL:
                    break
                reply = Reply("VA")
                reply.value = self.take_data(data, <Py_ssize_t>size)
                read_flags(reply, at, end)
                line = end + 2 if was_large else data + size + 2
            elif is_error(line, end):
                reply = Reply(PyUnicode_DecodeLatin1(line, end - line, NULL))
                line = end + 2
            else:
                raise Malformed(f"not a reply: {shown(line, end)}")
            self.replies.append(reply)
        self.start = line - first
        return len(self.replies) == self.count


cdef const char *plain_text(object key, bytes prefix, Py_ssize_t *size) except? NULL:
    """The bytes of a key that can travel as it is after a legal prefix, else NULL."""
    cdef const char *text
    cdef Py_ssize_t before = PyBytes_GET_SIZE(prefix)
    if type(key) is str:
        try:
            text = PyUnicode_AsUTF8AndSize(key, size)
        except UnicodeEncodeError:
            return NULL
    elif type(key) is bytes:
        text = PyBytes_AS_STRING(key)
        size[0] = PyBytes_GET_SIZE(key)
    else:
        return NULL
    if size[0] == 0 or size[0] > MAX_KEY - before or not all_legal(text, size[0]):
        return NULL
    if before + size[0] == MAX_KEY and (text[217 - before] if before <= 217 else PyBytes_AS_STRING(prefix)[217]) == c'~':
        return NULL
    return text


cdef bytes plain(object key, bytes prefix):
    cdef Py_ssize_t size
    cdef const char *text = plain_text(key, prefix, &size)
    cdef bytes wire
    if text == NULL or not all_legal(PyBytes_AS_STRING(prefix), PyBytes_GET_SIZE(prefix)):
        return None
    wire = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(prefix) + size)
    memcpy(put(PyBytes_AS_STRING(wire), prefix), text, size)
    return wire


def plain_key(key, bytes prefix not None):
    """The prefixed key as bytes, or None; see `kvcluster.protocol._pure.plain_key`."""
    return plain(key, prefix)


def plain_keys(list keys not None, bytes prefix not None, unusual):
    """`plain_key` of each key; see `kvcluster.protocol._pure.plain_keys`."""
    cdef list wires = []
    cdef bytes wire
    for key in keys:
        wire = plain(key, prefix)
        wires.append(unusual(key) if wire is None else wire)
    return wires


# A key on its way into a request, and a request that is being made.
cdef struct Part:
    Py_ssize_t owner  # -1 for a key that needs base64
    const char *text
    Py_ssize_t size
    bint prefixed  # whether the prefix goes before the text

cdef struct Line:
    Py_ssize_t keys, size
    char *at
    PyObject *names


def reads(list names not None, bytes prefix not None, unusual, placement, decode, bint tokens):
    """What reads many keys; see `kvcluster.protocol._pure.reads`."""
    cdef tuple addresses = placement.addresses
    cdef Py_ssize_t keys = len(names), owners = len(addresses)
    cdef Part *parts = <Part *>malloc((keys + 1) * sizeof(Part))
    cdef Line *lines = <Line *>calloc(owners + 1, sizeof(Line))
    cdef list kept
    cdef dict others = {}
    cdef dict values = presized(keys)  # as most keys are found, it would grow again and again
    try:
        if parts == NULL or lines == NULL:
            raise MemoryError()
        kept = find_owners(names, prefix, unusual, placement, parts, owners, others)
        return make_lines(names, prefix, addresses, decode, values, tokens, parts, lines), others, values
    finally:
        free(parts)
        free(lines)


cdef list find_owners(list names, bytes prefix, unusual, placement, Part *parts, Py_ssize_t owners, dict others):
    """Fill in the parts; what keeps the memory of their texts, apart from the names."""
    cdef list kept = []
    cdef const char *head = PyBytes_AS_STRING(prefix)
    cdef Py_ssize_t before = PyBytes_GET_SIZE(prefix), i
    cdef bint usable = before < MAX_KEY and all_legal(head, before)
    cdef uint8_t[MAX_KEY] joined
    cdef tuple wide = None
    cdef const uint8_t *narrow = NULL
    cdef Py_ssize_t slots = 0
    cdef int shift = 0
    cdef list found = None
    cdef Part *part
    cdef uint32_t slot
    hashed = placement.hash_table()
    if hashed is None:
        kept = plain_keys(names, prefix, unusual)
        found = placement.indexes(kept)
        if len(found) != len(names):
            raise ValueError("a placement must say the owner of each key")
    else:
        table, shift = hashed
        if not 0 <= shift < 32:
            raise ValueError(f"a 32-bit hash cannot be shifted by {shift}")
        if PyBytes_CheckExact(table):
            narrow = <const uint8_t *>PyBytes_AS_STRING(table)
        else:
            wide = table
        slots = len(table)
        memcpy(joined, head, before if usable else 0)
    for i in range(len(names)):
        part = &parts[i]
        part.prefixed = False
        if found is None:
            part.text = plain_text(names[i], prefix, &part.size) if usable else NULL
            if part.text != NULL:
                part.prefixed = True
                if before:
                    memcpy(joined + before, part.text, part.size)
                    slot = murmur3(joined, before + part.size) >> shift
                else:
                    slot = murmur3(<const uint8_t *>part.text, part.size) >> shift
                if slot >= slots:
                    raise IndexError(f"slot {slot} of {slots}")
                part.owner = narrow[slot] if narrow != NULL else <Py_ssize_t>wide[slot]
                if not 0 <= part.owner < owners:
                    raise IndexError(f"owner {part.owner} of {owners}")
                continue
            wire = unusual(names[i])
            kept.append(wire)
            part.owner = placement.index(wire)
        else:
            wire, part.owner = kept[i], found[i]
        if not 0 <= part.owner < owners:
            raise IndexError(f"owner {part.owner} of {owners}")
        if PyBytes_CheckExact(wire):
            part.text = PyBytes_AS_STRING(wire)
            part.size = PyBytes_GET_SIZE(wire)
        else:
            pair = others.setdefault(placement.addresses[part.owner], ([], []))
            pair[0].append(wire)
            pair[1].append(names[i])
            part.owner = -1
    return kept


cdef dict make_lines(list names, bytes prefix, tuple addresses, decode, dict values, bint tokens, Part *parts, Line *lines):
    """A `Fetch` for each owner of a part, by its address, in the order of the first key of each."""
    cdef dict fetches = {}
    cdef bytes word = word_of(tokens)
    cdef Py_ssize_t i
    cdef Part *part
    cdef Line *line
    cdef Fetch fetch
    for i in range(len(names)):
        part = &parts[i]
        if part.owner >= 0:
            lines[part.owner].keys += 1
            lines[part.owner].size += part.size + (PyBytes_GET_SIZE(prefix) if part.prefixed else 0) + 1
    for i in range(len(names)):
        part = &parts[i]
        if part.owner < 0:
            continue
        line = &lines[part.owner]
        if line.at == NULL:
            fetch = Fetch.__new__(Fetch)
            fetch.names = PyList_New(line.keys)
            fetch.payload = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(word) + line.size + 1)
            fetch.decode, fetch.values, fetch.tokens = decode, values, tokens
            fetches[addresses[part.owner]] = fetch
            line.names = <PyObject *>fetch.names
            line.at = put(PyBytes_AS_STRING(fetch.payload), word)
            line.keys = 0
        if part.prefixed:
            line.at = put(line.at, prefix)
        memcpy(line.at, part.text, part.size)
        line.at += part.size
        line.at[0] = c' '
        line.at += 1
        Py_INCREF(names[i])
        PyList_SET_ITEM(<list>line.names, line.keys, names[i])
        line.keys += 1
    for i in range(len(addresses)):
        if lines[i].at != NULL:  # a space follows the last key, too
            memcpy(lines[i].at - 1, b"\r\n", 2)
    return fetches


def group(list wires not None, list names not None, list owners not None):
    """Keys and names by owner; see `kvcluster.protocol._pure.group`."""
    cdef dict groups = {}
    cdef Py_ssize_t i
    cdef tuple pair
    cdef object owner
    if not len(wires) == len(names) == len(owners):
        raise ValueError("wires, names and owners must be equally many")
    for i in range(len(wires)):
        owner = owners[i]
        pair = groups.get(owner)
        if pair is None:
            groups[owner] = pair = ([], [])
        (<list>pair[0]).append(wires[i])
        (<list>pair[1]).append(names[i])
    return groups


cdef inline int width(Py_ssize_t number) noexcept nogil:
    """How many digits a number has."""
    cdef int size = 1
    while number > 9:
        number //= 10
        size += 1
    return size


cdef inline char *put_number(char *at, Py_ssize_t number) noexcept nogil:
    cdef int size = width(number)
    cdef int i
    for i in range(size - 1, -1, -1):
        at[i] = <char>(c'0' + number % 10)
        number //= 10
    return at + size


def set_lines(list wires not None, list values not None, bytes options not None, key_on_line):
    """One ``ms`` for each value, in one string; see `kvcluster.protocol._pure.set_lines`."""
    cdef Py_ssize_t room = 0
    cdef list pieces = []  # key, options and data, one after the other
    cdef bytes key, tail, data, payload, shared_tail = None
    cdef object flags, shared_flags = None
    cdef Py_ssize_t i
    cdef char *at
    if len(wires) != len(values):
        raise ValueError("wires and values must be equally many")
    for i in range(len(wires)):
        encoded, flags = values[i]
        data = encoded if PyBytes_CheckExact(encoded) else bytes(encoded)
        if shared_tail is None or flags is not shared_flags:
            shared_flags, shared_tail = flags, b" %b F%d" % (options, flags)
        wire = wires[i]
        if PyBytes_CheckExact(wire):
            key, tail = wire, shared_tail
        else:
            key, b = key_on_line(wire)
            tail = shared_tail + b
        pieces += (key, tail, data)
        room += 8 + len(key) + width(len(data)) + len(tail) + len(data)
    payload = PyBytes_FromStringAndSize(NULL, room)
    at = PyBytes_AS_STRING(payload)
    for i in range(0, len(pieces), 3):
        data = pieces[i + 2]
        at = put(at, b"ms ")
        at = put(at, pieces[i])
        at = put(at, b" ")
        at = put_number(at, len(data))
        at = put(at, pieces[i + 1])
        at = put(at, b"\r\n")
        at = put(at, data)
        at = put(at, b"\r\n")
    return payload


cdef inline char *put_field(char *at, const char *letter, unsigned long long number) noexcept nogil:
    """A space, a letter and a number."""
    cdef char[20] digits_of
    cdef int size = 0
    memcpy(at, letter, 2)
    at += 2
    while size == 0 or number:
        digits_of[size] = <char>(c'0' + number % 10)
        number //= 10
        size += 1
    while size:
        size -= 1
        at[0] = digits_of[size]
        at += 1
    return at


def fills(list wires not None, list values not None, list leases not None, list ttls not None, key_on_line):
    """One ``ms`` for each value, against the CAS number of its lease; see `kvcluster.protocol._pure.fills`."""
    cdef list lines = []
    cdef bytes key, tail, data
    cdef char[96] fields  # four numbers of at most 20 digits, and what is before each
    cdef char *end
    cdef char *at
    cdef Py_ssize_t i
    if not len(wires) == len(values) == len(leases) == len(ttls):
        raise ValueError("wires, values, leases and ttls must be equally many")
    for i in range(len(wires)):
        encoded, flags = values[i]
        data = encoded if PyBytes_CheckExact(encoded) else bytes(encoded)
        wire = wires[i]
        if PyBytes_CheckExact(wire):
            key, tail = wire, b"\r\n"
        else:
            key, b = key_on_line(wire)
            tail = b + b"\r\n"
        end = put_number(fields, PyBytes_GET_SIZE(data))
        end = put_field(end, b" C", leases[i])
        end = put_field(end, b" T", ttls[i])
        end = put_field(end, b" F", flags)
        line = PyBytes_FromStringAndSize(
            NULL, 6 + PyBytes_GET_SIZE(key) + (end - fields) + PyBytes_GET_SIZE(tail) + PyBytes_GET_SIZE(data)
        )
        at = put(put(PyBytes_AS_STRING(line), b"ms "), key)
        at[0] = c' '
        at += 1
        memcpy(at, fields, end - fields)
        at = put(put(at + (end - fields), tail), data)
        memcpy(at, b"\r\n", 2)
        lines.append(line)
    return lines


def leases(list replies not None):
    """The CAS numbers of replies that are all fresh leases, else None; see `kvcluster.protocol._pure.leases`."""
    cdef list numbers = []
    cdef Reply reply
    for reply in replies:
        if not reply.won or reply.value or reply.flags:
            return None
        numbers.append(reply.cas)
    return numbers
