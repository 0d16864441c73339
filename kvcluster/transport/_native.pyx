# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""The fast path of an exchange, compiled: a healthy node, an idle connection, a plain socket, and replies that arrive in one piece.

What `pool` and `exchange` say in Python holds here too, and whatever is not as on a good day is left to them, in the middle of an
exchange if need be. So nothing is decided here; where there was no compiler, they do it all.

Nothing here relies on the GIL: idle connections are taken from a deque and put back by its atomic ``pop`` and ``append``, and a
connection has one user at a time.
"""

from cpython.bytes cimport PyBytes_GET_SIZE
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from kvcluster.errors import KvclusterError
from kvcluster.protocol._native cimport Fetch, Reader, send_bytes
from kvcluster.protocol._pure import Malformed

cdef class ConnectionFields:
    """What the fast path knows of a `Connection`."""

    cdef public Reader reader
    cdef public int fd
    cdef public Py_ssize_t owed
    cdef public dict counters
    cdef public bint used, expired
    cdef public double timeout, idle_since


cdef class EndpointFields:
    """What the fast path knows of an `Endpoint`."""

    cdef public object state, idle, waiters, clock
    cdef public double sweep_at


cdef ConnectionFields take(EndpointFields endpoint, request):
    """An idle connection to a node that is well, or None."""
    if not endpoint.state.ready or request.opened_before is not None:
        return None
    try:
        return endpoint.idle.pop()
    except IndexError:
        return None


cdef bint direct(ConnectionFields connection, request) except -1:
    """Whether the kernel keeps the time, an answer comes, and no earlier one is owed."""
    return connection.fd >= 0 and not connection.owed and (type(request) is Fetch or request.count > 0)


cdef bytes payload_of(request):
    return (<Fetch>request).payload if type(request) is Fetch else request.payload


cdef int settle(ConnectionFields connection, request, namespace, Py_ssize_t received) except -1:
    """Count a request whose replies were read."""
    cdef Fetch fetch
    if type(request) is Fetch and connection.reader.end == connection.reader.start:
        fetch = request
        counters = connection.counters.get(namespace)
        if counters is not None and fetch.failure is None:
            counters.bytes_written += PyBytes_GET_SIZE(fetch.payload)
            counters.bytes_read += received
            fetch.settle(counters)
            return 0
    connection.complete(request, namespace, received)
    return 0


cdef int give_back(EndpointFields endpoint, ConnectionFields connection) except -1:
    """Put a connection back."""
    if connection.expired:
        endpoint.release(connection, True)
        return 0
    connection.used = True
    connection.idle_since = endpoint.clock()
    endpoint.idle.append(connection)
    if endpoint.waiters or connection.expired or connection.idle_since > endpoint.sweep_at:
        endpoint.tidy(connection)
    return 0


def fast_exchange(EndpointFields endpoint not None, request, namespace, list held not None):
    """Exchange a request with one node. True where that is done, and None where nothing was begun; else how far it came: the number
    of bytes received, or an error.

    :param held: gets the connection of an exchange that is not done
    """
    cdef Py_ssize_t received
    cdef ConnectionFields connection = take(endpoint, request)
    if connection is None:
        return None
    if not direct(connection, request):
        give_back(endpoint, connection)
        return None
    try:
        send_bytes(connection.fd, payload_of(request))
        connection.reader.begin(request)
        received = connection.reader.receive(connection.fd)
        if not connection.reader.complete:
            held.append(connection)
            return received
        settle(connection, request, namespace, received)
        if not endpoint.state.ready:
            endpoint.state.answered()
    except (OSError, Malformed, KvclusterError) as error:
        held.append(connection)
        return error
    except BaseException:
        endpoint.release(connection, False)
        raise
    give_back(endpoint, connection)
    return True


def fast_scatter(dict endpoints not None, dict requests not None, namespace, dict held not None, double seconds, Py_ssize_t most):
    """Exchange small requests with several nodes: all are sent before any reply is read. None where nothing was sent; else how far
    those came that are not done, by address: the number of bytes received, None where nothing was, or an error.

    :param held: gets the connections that are taken, by address in the order of the addresses; those that are done leave it
    :param seconds: for all of it together; what could take longer is left to the caller
    :param most: bytes of a request that a socket's buffers take whole
    """
    cdef list order = sorted(requests)
    cdef dict left = {}
    cdef bint usable = True
    cdef double end = now() + seconds
    cdef Py_ssize_t received
    cdef ConnectionFields connection = None
    for address in order:
        usable = usable and PyBytes_GET_SIZE(payload_of(requests[address])) <= most
    if not usable:
        return None
    for address in order:
        request = requests[address]
        connection = take(endpoints[address], request)
        if connection is None:
            return None
        held[address] = connection
        usable = usable and direct(connection, request)
    if connection is None or not usable:
        return None
    end -= connection.timeout  # until then no receive could end too late, so the kernel's timeouts are enough
    for address in order:
        connection, request = held[address], requests[address]
        try:
            send_bytes(connection.fd, payload_of(request))
        except OSError as error:
            left[address] = error
        connection.reader.begin(request)
    for address in order:
        if address in left:
            continue
        connection, request = held[address], requests[address]
        if now() > end:
            left[address] = None
            continue
        try:
            received = connection.reader.receive(connection.fd)
            if not connection.reader.complete:
                left[address] = received
                continue
            settle(connection, request, namespace, received)
            if not (<EndpointFields?>endpoints[address]).state.ready:
                endpoints[address].state.answered()
        except (OSError, Malformed, KvclusterError) as error:
            left[address] = error
            continue
        del held[address]
        give_back(endpoints[address], connection)
    return left


cdef double now() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return time.tv_sec + 1e-9 * time.tv_nsec
