/* DatagramFields: what a Datagram consists of, and how many of them are received and answered with one system call.
 *
 *     kernel -> _receive_many() -> Datagram, Datagram, ... -> handlers -> answers -> _send_many() -> kernel
 *
 * Theory of operation. When that is done and for how many, and what becomes of errors, is for Python:
 * datagrams/ring_runner.py. Here a datagram keeps its sender's name as the kernel has written it, and its answer goes to
 * that. The address that Python would make of it is made when somebody asks; most handlers never do.
 *
 * The GIL is kept in recvmmsg and sendmmsg, which never wait: a batch of 32 takes them tens of microseconds, of the
 * largest datagrams some hundreds.
 */
#include "speedups.h"
#include <arpa/inet.h>

#define MOST 32     /* datagrams: as many as a batch has, see datagrams/batch_reader.py */
#define CONTROL 128 /* bytes: CONTROL_SIZE in kernel/packet_info.py */

/* The attributes that are Python's own, see datagrams/datagram.py; `packed` is `control` as the kernel wants it. */
#define DATAGRAM_OBJECTS(X)                                                                                            \
    X(answer, "answer") X(control, "control") X(data, "data") X(endpoint, "endpoint") X(packed, "packed")               \
    X(unsent, "unsent")
#define ALL_OBJECTS(X) DATAGRAM_OBJECTS(X) X(address, )

typedef struct {
    PyObject_HEAD
    ALL_OBJECTS(FIELD)     /* `address` is NULL until somebody asks for it */
    socklen_t name_length; /* 0: there is no name, and the address is what counts */
    char replied, truncated;
    Name name;
} Datagram;

/* -- the address */

/* As makesockaddr() in CPython's Modules/socketmodule.c. */
PyObject *address_of(const Name *name) {
    char host[INET6_ADDRSTRLEN];
    if (name->any.sa_family == AF_INET) {
        inet_ntop(AF_INET, &name->in.sin_addr, host, sizeof host);
        return Py_BuildValue("si", host, ntohs(name->in.sin_port));
    }
    const struct sockaddr_in6 *in6 = &name->in6;
    inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof host);
    return Py_BuildValue("siII", host, ntohs(in6->sin6_port), ntohl(in6->sin6_flowinfo), in6->sin6_scope_id);
}

static PyObject *get_address(Datagram *self, void *Py_UNUSED(closure)) {
    if (!self->address && self->name_length)
        self->address = address_of(&self->name);
    if (!self->address && !PyErr_Occurred())
        PyErr_SetString(PyExc_AttributeError, "address");
    return Py_XNewRef(self->address);
}

/* From now on answers go to this one. */
static int set_address(Datagram *self, PyObject *address, void *Py_UNUSED(closure)) {
    self->name_length = 0;
    Py_XSETREF(self->address, Py_XNewRef(address));
    return 0;
}

/* -- receiving */

/* What has come with a message; NULL with an exception. */
static PyObject *received(PyTypeObject *type, PyObject *endpoint, PyObject *judged, struct mmsghdr *message) {
    struct msghdr *header = &message->msg_hdr;
    size_t length = message->msg_len, size = header->msg_iov->iov_len;
    Datagram *self = (Datagram *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->truncated = length > size;
    self->name = *(Name *)header->msg_name;
    self->name_length = header->msg_namelen <= sizeof(Name) ? header->msg_namelen : 0;
    self->endpoint = Py_NewRef(endpoint);
    self->unsent = Py_NewRef(Py_None);
    self->data = PyBytes_FromStringAndSize(header->msg_iov->iov_base, (Py_ssize_t)(length < size ? length : size));
    self->control = judged == NULL ? Py_NewRef(Py_None) : Py_XNewRef(PyTuple_GetItem(judged, 0));
    self->packed = judged == NULL ? NULL : Py_XNewRef(PyTuple_GetItem(judged, 1));
    if (self->data == NULL || PyErr_Occurred())
        Py_CLEAR(self);
    return (PyObject *)self;
}

/* What `judge` makes of a message's control data, a pair; that of the message before, if its data are the same. */
static PyObject *judgement(PyObject *judge, PyObject *before, struct mmsghdr *message) {
    struct msghdr *header = &message->msg_hdr, *last = &message[-1].msg_hdr;
    if (judge == Py_None || (before != NULL && header->msg_controllen == last->msg_controllen &&
                             memcmp(header->msg_control, last->msg_control, header->msg_controllen) == 0))
        return before;
    Py_XDECREF(before);
    return PyObject_CallFunction(judge, "y#", header->msg_control, (Py_ssize_t)header->msg_controllen);
}

/* _receive_many(endpoint, fd, wanted, memory, judge): see datagrams/datagram.py. */
static PyObject *receive_many(PyTypeObject *type, PyObject *args) {
    struct mmsghdr messages[MOST];
    struct iovec vectors[MOST];
    Name names[MOST];
    _Alignas(struct cmsghdr) char controls[MOST][CONTROL];
    PyObject *endpoint, *judge, *judged = NULL;
    Py_ssize_t wanted;
    Py_buffer memory;
    int fd;
    if (!PyArg_ParseTuple(args, "Oinw*O", &endpoint, &fd, &wanted, &memory, &judge))
        return NULL;
    size_t size = (size_t)memory.len / MOST;
    wanted = wanted < 1 ? 1 : wanted < MOST ? wanted : MOST;
    for (int i = 0; i < wanted; i++) {
        vectors[i] = (struct iovec){(char *)memory.buf + (size_t)i * size, size};
        messages[i].msg_hdr = (struct msghdr){
            .msg_name = &names[i], .msg_namelen = sizeof(Name), .msg_iov = &vectors[i], .msg_iovlen = 1};
        if (judge != Py_None) {
            messages[i].msg_hdr.msg_control = controls[i];
            messages[i].msg_hdr.msg_controllen = CONTROL;
        }
    }
    /* With MSG_TRUNC the length is the datagram's own, recv(2). */
    int got = recvmmsg(fd, messages, (unsigned)wanted, MSG_TRUNC | MSG_DONTWAIT, NULL);
    PyObject *list = got < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyList_New(got);
    for (int i = 0; list != NULL && i < got; i++) {
        judged = judgement(judge, judged, &messages[i]);
        PyObject *datagram = PyErr_Occurred() ? NULL : received(type, endpoint, judged, &messages[i]);
        PyList_SET_ITEM(list, i, datagram);
        if (datagram == NULL)
            Py_CLEAR(list);
    }
    Py_XDECREF(judged);
    PyBuffer_Release(&memory);
    return list;
}

/* -- sending */

/* What an answer is sent with; false if Python has to do it. */
static int prepare(PyTypeObject *type, PyObject *item, struct msghdr *header, struct iovec *vector) {
    Datagram *self = (Datagram *)item;
    if (!Py_IS_TYPE(item, type) || !self->name_length || !self->answer || !PyBytes_CheckExact(self->answer))
        return 0;
    *vector = (struct iovec){PyBytes_AS_STRING(self->answer), (size_t)PyBytes_GET_SIZE(self->answer)};
    *header = (struct msghdr){
        .msg_name = &self->name, .msg_namelen = self->name_length, .msg_iov = vector, .msg_iovlen = 1};
    if (self->packed && PyBytes_CheckExact(self->packed)) {
        header->msg_control = PyBytes_AS_STRING(self->packed);
        header->msg_controllen = (size_t)PyBytes_GET_SIZE(self->packed);
    }
    return 1;
}

/* _send_many(fd, datagrams): see there. */
static PyObject *send_many(PyTypeObject *type, PyObject *args) {
    struct mmsghdr messages[MOST];
    struct iovec vectors[MOST];
    PyObject *list;
    int fd, n = 0;
    if (!PyArg_ParseTuple(args, "iO!", &fd, &PyList_Type, &list))
        return NULL;
    while (n < MOST && n < PyList_GET_SIZE(list)
           && prepare(type, PyList_GET_ITEM(list, n), &messages[n].msg_hdr, &vectors[n]))
        n++;
    int sent = n ? sendmmsg(fd, messages, (unsigned)n, MSG_DONTWAIT) : 0;
    return PyLong_FromLong(sent < 0 ? 0 : sent); /* Python meets the error again, and knows what to do */
}

LIFE(Datagram, datagram, ALL_OBJECTS, )

static PyMethodDef methods[] = {
    {"_receive_many", (PyCFunction)receive_many, METH_VARARGS | METH_CLASS, NULL},
    {"_send_many", (PyCFunction)send_many, METH_VARARGS | METH_CLASS, NULL},
    {0},
};

/* T_OBJECT_EX, as `__slots__` are: LOAD_ATTR_SLOT is for it alone, Python/specialize.c. */
#define MEMBER(field, name) {name, T_OBJECT_EX, offsetof(Datagram, field), 0, NULL},
static PyMemberDef datagram_members[] = {
    DATAGRAM_OBJECTS(MEMBER)
    {"replied", T_BOOL, offsetof(Datagram, replied), 0, NULL},
    {"truncated", T_BOOL, offsetof(Datagram, truncated), 0, NULL},
    {0},
};
static PyGetSetDef getset[] = {{"address", (getter)get_address, (setter)set_address, NULL, NULL}, {0}};
static PyType_Slot slots[] = {
    SLOTS(datagram, PyType_GenericNew, "What a datagram consists of."), {Py_tp_methods, methods}, {Py_tp_getset, getset}, {0, NULL},
};
PyType_Spec datagram_spec = {"asyncserver.datagrams.datagram.DatagramFields", sizeof(Datagram), 0, FLAGS, slots};
