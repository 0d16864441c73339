# What compiled code of other rooms uses of the protocol's.

cdef class Fetch:
    cdef readonly bytes payload
    cdef readonly object names, decode  # names are a list or a tuple at any time
    cdef readonly dict values
    cdef readonly bint tokens
    cdef public Py_ssize_t found, undecodable
    cdef public object doubtful, refusal, failure

    cpdef settle(self, counters)


cdef class Reader:
    # What is asked: a classic read, or the list that `count` replies go to.
    cdef Fetch fetch
    cdef list replies
    cdef Py_ssize_t count
    cdef Py_ssize_t cursor  # the position of the next key that a Fetch may be answered with, and where it is in its payload
    cdef const char *cursor_at

    # What has arrived and is not yet understood: memory[start:end].
    cdef bytes memory
    cdef Py_ssize_t start, end

    # The data of a value larger than that, whose line stays there: large[:large_end] of large_size, line end included.
    cdef bytes large
    cdef Py_ssize_t large_end, large_size

    cdef Py_ssize_t lent  # how many bytes the last view has room for
    cdef readonly bint complete  # whether the last `receive` brought the last reply

    cpdef begin(self, request)
    cpdef Py_ssize_t receive(self, int fd) except -1
    cpdef bint received(self, Py_ssize_t count) except -1
    cdef int make_room(self) except -1
    cdef int resize_large(self, Py_ssize_t size) except -1
    cdef int begin_large(self, Py_ssize_t data_at, Py_ssize_t size) except -1
    cdef const char *find_data(self, const char *line, const char *at, const char *stop, unsigned long long size) except? NULL
    cdef bytes take_data(self, const char *data, Py_ssize_t size)
    cdef bint read_fetch(self) except -1
    cdef const char *find_key(self, const char *key, const char *stop) noexcept
    cdef int file(
        self, Py_ssize_t key_size, const char *data, Py_ssize_t size, unsigned long long flags, const char *cas, const char *cas_end
    ) except -1
    cdef bint read_commands(self) except -1


cdef int send_bytes(int fd, bytes payload) except -1
