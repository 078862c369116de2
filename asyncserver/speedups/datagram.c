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

typedef union {
    char bytes[CONTROL];
    struct cmsghdr first; /* aligned for it */
} Control;

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
static PyObject *received(PyTypeObject *type, PyObject *endpoint, PyObject *judged, struct msghdr *header,
                          size_t length) {
    Datagram *self = (Datagram *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->truncated = length > header->msg_iov->iov_len;
    length = self->truncated ? header->msg_iov->iov_len : length;
    self->name = *(Name *)header->msg_name;
    self->name_length = header->msg_namelen;
    self->endpoint = Py_NewRef(endpoint);
    self->unsent = Py_NewRef(Py_None);
    self->data = PyBytes_FromStringAndSize(header->msg_iov->iov_base, (Py_ssize_t)length);
    self->control = Py_NewRef(judged == NULL ? Py_None : PyTuple_GET_ITEM(judged, 0));
    self->packed = judged == NULL ? NULL : Py_NewRef(PyTuple_GET_ITEM(judged, 1));
    if (self->data == NULL)
        Py_CLEAR(self);
    return (PyObject *)self;
}

/* What `judge` makes of a message's control data, a pair; that of the message before, if its data are the same. */
static PyObject *judgement(PyObject *judge, PyObject *before, struct mmsghdr *message) {
    struct msghdr *header = &message->msg_hdr;
    if (before != NULL && header->msg_controllen == message[-1].msg_hdr.msg_controllen
        && memcmp(header->msg_control, message[-1].msg_hdr.msg_control, header->msg_controllen) == 0)
        return before;
    Py_XDECREF(before);
    PyObject *made = PyObject_CallFunction(judge, "y#", header->msg_control, (Py_ssize_t)header->msg_controllen);
    if (made != NULL && !(PyTuple_CheckExact(made) && PyTuple_GET_SIZE(made) == 2)) {
        Py_CLEAR(made);
        PyErr_SetString(PyExc_TypeError, "judge() has to return a pair");
    }
    return made;
}

/* _receive_many(endpoint, fd, wanted, memory, judge): see datagrams/datagram.py. */
static PyObject *receive_many(PyTypeObject *type, PyObject *const *args, Py_ssize_t nargs) {
    struct mmsghdr messages[MOST];
    struct iovec vectors[MOST];
    Name names[MOST];
    Control controls[MOST];
    Py_buffer memory;
    if (nargs != 5)
        return PyErr_Format(PyExc_TypeError, "_receive_many() takes five arguments");
    long fd = PyLong_AsLong(args[1]), wanted = PyLong_AsLong(args[2]);
    if (PyErr_Occurred() || PyObject_GetBuffer(args[3], &memory, PyBUF_WRITABLE))
        return NULL;
    size_t size = (size_t)memory.len / MOST;
    wanted = wanted < 1 ? 1 : wanted < MOST ? wanted : MOST;
    for (int i = 0; i < wanted; i++) {
        vectors[i] = (struct iovec){(char *)memory.buf + (size_t)i * size, size};
        messages[i].msg_hdr = (struct msghdr){
            .msg_name = &names[i], .msg_namelen = sizeof(Name), .msg_iov = &vectors[i], .msg_iovlen = 1};
        if (args[4] != Py_None) {
            messages[i].msg_hdr.msg_control = &controls[i];
            messages[i].msg_hdr.msg_controllen = CONTROL;
        }
    }
    /* With MSG_TRUNC the length is the datagram's own, recv(2). */
    int got = recvmmsg((int)fd, messages, (unsigned)wanted, MSG_TRUNC | MSG_DONTWAIT, NULL);
    PyObject *list = got < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyList_New(got), *judged = NULL;
    for (int i = 0; list != NULL && i < got; i++) {
        if (args[4] != Py_None)
            judged = judgement(args[4], judged, &messages[i]);
        PyObject *datagram = args[4] != Py_None && judged == NULL ? NULL
            : received(type, args[0], judged, &messages[i].msg_hdr, messages[i].msg_len);
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
static PyObject *send_many(PyTypeObject *type, PyObject *const *args, Py_ssize_t nargs) {
    struct mmsghdr messages[MOST];
    struct iovec vectors[MOST];
    if (nargs != 2 || !PyList_Check(args[1]))
        return PyErr_Format(PyExc_TypeError, "_send_many() takes a descriptor and a list");
    long fd = PyLong_AsLong(args[0]);
    int n = 0;
    if (fd == -1 && PyErr_Occurred())
        return NULL;
    while (n < MOST && n < PyList_GET_SIZE(args[1])
           && prepare(type, PyList_GET_ITEM(args[1], n), &messages[n].msg_hdr, &vectors[n]))
        n++;
    int sent = n ? sendmmsg((int)fd, messages, (unsigned)n, MSG_DONTWAIT) : 0;
    return PyLong_FromLong(sent < 0 ? 0 : sent); /* Python meets the error again, and knows what to do */
}

/* -- the object */

LIFE(Datagram, datagram, ALL_OBJECTS)

static PyMethodDef methods[] = {
    {"_receive_many", (PyCFunction)(void (*)(void))receive_many, METH_FASTCALL | METH_CLASS, NULL},
    {"_send_many", (PyCFunction)(void (*)(void))send_many, METH_FASTCALL | METH_CLASS, NULL},
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
    SLOTS(datagram, "What a datagram consists of."), {Py_tp_methods, methods}, {Py_tp_getset, getset}, {0, NULL},
};
PyType_Spec datagram_spec = {"asyncserver.datagrams.datagram.DatagramFields", sizeof(Datagram), 0, FLAGS, slots};
