/* Datagrams: what datagram.c, ring.c and batch.c share.
 *
 *     kernel -> Ring (recvmmsg) -> Datagram -> Batch: handler, handler, ... -> Ring (sendmmsg) -> kernel
 *
 * Theory of operation. The definition is Python: Endpoint, BatchReader, InlineRunner, in asyncserver/datagrams/. The C
 * code does their usual path in fewer steps and leaves the rest to them: drains, errors, answers for which the kernel
 * has no room, other sockets than those of IPv4 and IPv6.
 *
 * The ring is the end of the kernel's queue. What it holds nobody has received: it is not counted, and a drain and a
 * close treat it like what the kernel holds. So the counters say the same with a ring as without.
 *
 * What is needed lies in the objects, not in the module. The GIL is kept in recvmmsg and sendmmsg, which never wait: a
 * batch of 32 takes them tens of microseconds, of the largest datagrams some hundreds.
 */
#ifndef DATAGRAMS_H
#define DATAGRAMS_H

#include "speedups.h"

/* The attributes of a Datagram, see datagrams/datagram.py. */
#define DATAGRAM_OBJECTS(X) X(endpoint, "endpoint") X(data, "data") X(control, "control") X(unsent, "unsent")

typedef struct {
    PyObject_HEAD
    DATAGRAM_OBJECTS(FIELD)
    PyObject *address;     /* NULL until somebody asks for it */
    socklen_t name_length; /* 0: there is no name, and the address is what counts */
    char replied, truncated;
    Name name;
} Datagram;

/* The attributes of a reader that we use, see datagrams/batch_reader.py and inline_runner.py; and its ring. */
#define READER_OBJECTS(X) X(sock, "sock") X(current, "current") X(answers, "_answers") X(remaining, "_remaining")
#define RING_OBJECTS(X)                                                                                                \
    READER_OBJECTS(X) X(memory, ) X(sock_type, ) X(datagram_type, ) X(not_for_us, ) X(judge, ) X(judged, )             \
    X(control, ) X(packed, ) /* see ring_open(), and judge() */

typedef struct {
    PyObject_HEAD
    RING_OBJECTS(FIELD)
    long long received, sent;
    int left; /* to take in this batch; none while it pauses */
    int next, held; /* the next datagram of the ring, and how many it has */
    int size; /* bytes of a datagram that are kept */
} Ring;

/* The next datagram, a new reference; NULL with what `BatchReader._take()` expects of `_receive()`. */
PyObject *ring_receive(Ring *self, PyObject *ignored);

#endif
